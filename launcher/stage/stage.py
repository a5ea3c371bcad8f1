"""A stage of a command: its settings, its folder, and the checkpoint that it starts from."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dq.dist.files.checkpoint import load_checkpoint
from dq.dist.work.on_main_rank import on_main_rank
from dq.tracking.record.stage_summary import StageSummary, is_current, sha256_of
from dq.tracking.tracker import Tracker
from launcher.plan import Plan
from launcher.session import Session

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The checkpoint that a stage starts from.

    Attributes:
        path: The file.
        content: The content of the file.
        sha256: Of the file.
    """

    path: Path
    content: Mapping[str, Any]
    sha256: str

    @property
    def source(self) -> str:
        """Its name, for messages."""
        return str(self.path)

    @property
    def run_id(self) -> str | None:
        """Id of the run that wrote it, or None if it has none."""
        found: str | None = self.content.get("meta", {}).get("run_id")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of a command.

    Attributes:
        plan: All settings of the command.
        place: The process.
        name: ``float``, ``calibrated``, ``qat`` or ``eval``; also the name of its folder.
        key: Digest of everything that decides its result.
        parent: The checkpoint that it starts from; None for a float training.
        tracker: Of its run; records nothing until `launcher.stage.tracked.tracked` sets one.
        began: `time.monotonic` at its start.
    """

    plan: Plan
    place: Session
    name: str
    key: str
    parent: Parent | None = None
    tracker: Tracker = field(default_factory=Tracker)
    began: float = field(default_factory=time.monotonic)

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return self.place.experiment / self.name

    @property
    def checkpoint(self) -> Path:
        """The file with its result."""
        return self.folder / f"{self.name}.pth"

    @property
    def parent_sha256(self) -> str | None:
        """SHA-256 of the checkpoint that it starts from."""
        return None if self.parent is None else self.parent.sha256


def stage_of(
    plan: Plan, place: Session, name: str, parent: Parent | None = None, *more: object
) -> Stage:
    """Return a stage that starts now.

    Args:
        plan: All settings of the command.
        place: The process.
        name: Of the stage.
        parent: The checkpoint that it starts from.
        more: Further values that decide its result.
    """
    sha256 = None if parent is None else parent.sha256
    key = plan.key(name, place.device.type, sha256, *more)
    return Stage(plan=plan, place=place, name=name, key=key, parent=parent)


def check_start(place: Session, checkpoint: Path, *names: str) -> None:
    """Check that none of a command's stages replaces the checkpoint that the command starts from.

    Every rank must call it; the main rank looks.

    Args:
        place: The process.
        checkpoint: The file.
        names: Of the stages that the command writes.

    Raises:
        ValueError: On all ranks: the checkpoint is in the folder of such a stage.
    """

    def look() -> None:
        for folder in (place.experiment / name for name in names):
            if checkpoint.resolve().parent == folder.resolve():
                raise ValueError(
                    f"{checkpoint} is in {folder}, where this command writes its result; choose"
                    " another --work-dir"
                )

    on_main_rank(look)


def read_checkpoint(path: Path, *, trusted: bool) -> Parent:
    """Return a checkpoint on all ranks; the main rank reads the file, and every rank must call."""

    def read() -> tuple[dict[str, Any], str]:
        return load_checkpoint(path, trusted=trusted), sha256_of(path)

    content, sha256 = on_main_rank(read)
    return Parent(path=path, content=content, sha256=sha256)


def reusable(stage: Stage) -> StageSummary | None:
    """Return the stage's summary if it is finished with the same settings; every rank must call."""
    done: StageSummary | None = on_main_rank(lambda: is_current(stage.folder, stage.key))
    if done is not None:
        log.info("%s is done already: %s %.2f %%", stage.folder, done.metric, 100 * done.value)
    return done
