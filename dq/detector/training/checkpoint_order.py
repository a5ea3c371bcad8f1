"""Which checkpoint of a folder is the newest that a training can go on from, by what they say.

No clock has a part in it. A computer's may be set back, another node's may be wrong, and a copied
file has the time of its copy. Each checkpoint says how many trainings were begun or gone on with
in its folder before it (its attempt), and how many steps it has done.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dq.dist.files.checkpoint import load_checkpoint, note_of, peek_checkpoint

log = logging.getLogger(__name__)
# Not the best ones, which hold no more than weights and optimizer.
RESUMABLE = ("epoch_[0-9]*.pth", "step_[0-9]*.pth", "iter_[0-9]*.pth")
ATTEMPT = "attempt"
_NOTE = re.compile(r"attempt (\d+), step (\d+), epoch (\d+)")


class Place(NamedTuple):
    """Where a checkpoint stands among those of its folder; a greater one is newer.

    Attributes:
        attempt: Of the training that wrote it, counted from 1 in this folder; each start counts,
            of a training that goes on too. 0 for a file of another program's.
        step: Steps that are done.
        epoch: Epochs that are done; that of an epoch's end follows the last one inside it.
    """

    attempt: int
    step: int
    epoch: int

    @property
    def note(self) -> str:
        """What stands beside the checksum, so that the file need not be read."""
        return f"attempt {self.attempt}, step {self.step}, epoch {self.epoch}"


def place_of(path: Path) -> Place | None:
    """Return a checkpoint's place, None where it does not say."""
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


def newest_first(paths: Iterable[Path]) -> list[Path]:
    """Return the checkpoints that say when they were written, the newest first."""
    places = {path: place for path in paths if (place := place_of(path)) is not None}
    return sorted(places, key=lambda path: (places[path], path.name), reverse=True)


def next_attempt(folder: Path) -> int:
    """Return the number of the training that begins, or goes on, in this folder now."""
    places = [place_of(path) for path in _candidates(folder)]
    return 1 + max((place.attempt for place in places if place is not None), default=0)


def newest_training(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Find the newest checkpoint of a folder that a training can go on from.

    One that is damaged, or does not hold a training's state, is passed over with a warning, for the
    one before it.

    Args:
        folder: It may be missing.

    Returns:
        Its path and content; None where there is none.
    """
    candidates = _candidates(folder)
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
    """Whether it is one of ours to go on from, or mmdet's own, of which that is all there is."""
    ours = ATTEMPT in (content.get("meta") or {})
    return "optimizer" in content and ("training" in content or not ours)


def _candidates(folder: Path) -> set[Path]:
    return {path for pattern in RESUMABLE for path in folder.glob(pattern) if path.is_file()}
