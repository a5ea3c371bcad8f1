"""Find the newest checkpoint in a folder that can be resumed, by the content of the files.

File times are not used: a clock may be set back, another node's clock may be wrong, and a copied
file has the time of its copy. Each checkpoint stores its attempt (the number of trainings started
or resumed in its folder so far) and its number of finished steps.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dq.dist.files.checkpoint import load_checkpoint, note_of, peek_checkpoint

log = logging.getLogger(__name__)
# Not the best ones, which contain only weights and optimizer, and no copy such as epoch_1_old.pth.
_NAME = re.compile(r"(epoch|step|iter)_[0-9]+\.pth")
ATTEMPT = "attempt"
_NOTE = re.compile(r"attempt (\d+), step (\d+), epoch (\d+)")


class Place(NamedTuple):
    """The position of a checkpoint among those of its folder; a greater one is newer.

    Attributes:
        attempt: Number of the training that wrote it, from 1 in this folder; each start and each
            resume counts. 0 for a file of another program.
        step: Finished steps.
        epoch: Finished epochs; the checkpoint at the end of an epoch comes after the last one
            within it.
    """

    attempt: int
    step: int
    epoch: int

    @property
    def note(self) -> str:
        """Text to store with the checksum, so that the checkpoint itself need not be read."""
        return f"attempt {self.attempt}, step {self.step}, epoch {self.epoch}"


def place_of(path: Path) -> Place | None:
    """Return a checkpoint's place, or None if it has none."""
    said = _NOTE.fullmatch(note_of(path) or "")
    if said is not None:
        return Place(*map(int, said.groups()))
    content = peek_checkpoint(path)
    if content is None:
        return None
    meta, training = (content.get(name) or {} for name in ("meta", "training"))
    try:
        return Place(
            attempt=int(meta.get(ATTEMPT, 0)),
            step=int(training.get("iteration", meta.get("iter", 0))),
            epoch=int(training.get("epoch", meta.get("epoch", 0))),
        )
    except (AttributeError, TypeError, ValueError):
        return None


def checkpoints_in(folder: Path, *kinds: str) -> list[Path]:
    """Return the files of a folder with the names of a training's checkpoints.

    Args:
        folder: It may be missing.
        kinds: ``epoch``, ``step``, ``iter``; all of them by default.
    """
    names = [(_NAME.fullmatch(path.name), path) for path in folder.glob("*.pth")]
    return [p for name, p in names if name and (not kinds or name[1] in kinds) and p.is_file()]


def is_ours(path: Path) -> bool:
    """Return whether a training of this program has written a checkpoint."""
    place = place_of(path)
    return place is not None and place.attempt > 0


def newest_first(paths: Iterable[Path]) -> list[Path]:
    """Return the checkpoints that have a place, the newest first."""
    places = {path: place for path in paths if (place := place_of(path)) is not None}
    return sorted(places, key=lambda path: (places[path], path.name), reverse=True)


def next_attempt(folder: Path) -> int:
    """Return the number of the training that is started or resumed in this folder now."""
    places = [place_of(path) for path in checkpoints_in(folder)]
    return 1 + max((place.attempt for place in places if place is not None), default=0)


def newest_training(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Find the newest checkpoint of a folder from which a training can resume.

    A checkpoint that is damaged, or has no training state, is skipped with a warning; the one
    before it is used.

    Args:
        folder: It may be missing.

    Returns:
        Its path and content, or None.
    """
    candidates = set(checkpoints_in(folder))
    ordered = newest_first(candidates)
    for path in sorted(candidates - set(ordered)):
        log.warning("skipped: %s does not say when it was written, or cannot be read", path)
    for path in ordered:
        try:
            content = load_checkpoint(path)
        except ValueError as error:
            log.warning("skipped: %s", error)
            continue
        if _holds_training(content):
            return path, content
        log.warning("skipped: %s does not hold a training's state", path)
    return None


def _holds_training(content: Mapping[str, Any]) -> bool:
    """Return whether it is a resumable checkpoint of ours, or one of plain mmdet."""
    ours = ATTEMPT in (content.get("meta") or {})
    return "optimizer" in content and ("training" in content or not ours)
