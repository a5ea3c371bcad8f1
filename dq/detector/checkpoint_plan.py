"""When a training writes checkpoints, how they are called and which of them are kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
# What mmcv's hook knows besides; the file names are fixed and buffers are never lost here.
WITHOUT_EFFECT = (
    "out_dir",
    "sync_buffer",
    "file_client_args",
    "create_symlink",
    "type",
    "save_last",
)
# Not the best ones, which hold no more than weights and optimizer.
RESUMABLE = ("epoch_[0-9]*.pth", "step_[0-9]*.pth", "iter_[0-9]*.pth")
MIDDLE_KEPT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPlan:
    """The config's ``checkpoint_config``.

    Attributes:
        interval: Epochs between two checkpoints, steps for a runner that counts iterations; 0 for
            none but the last.
        by_epoch: Whether ``interval`` counts epochs.
        max_keep_ckpts: So many of the newest are kept, and the best beside them; -1 for all. Of
            those in the middle of an epoch there are never more than two.
        save_optimizer: Without the optimizer's state a training cannot go on from it.
        steps: Steps between two further checkpoints in the middle of an epoch; 0 for none.
        minutes: A checkpoint is written at the next step when the last is so old; 0 for never.
    """

    interval: int = 1
    by_epoch: bool = True
    max_keep_ckpts: int = 3
    save_optimizer: bool = True
    steps: int = 0
    minutes: float = 15.0

    def __post_init__(self) -> None:
        for name, least in (("interval", -1), ("max_keep_ckpts", -1), ("steps", 0), ("minutes", 0)):
            given = getattr(self, name)
            if given < least:
                raise ValueError(f"checkpoint_config.{name} is {given}; use {least} or more")
        if self.max_keep_ckpts == 0:
            raise ValueError("checkpoint_config.max_keep_ckpts is 0; keep one, or -1 for all")

    def at_epoch(self, finished: int, of: int) -> bool:
        """Whether one is due after so many epochs."""
        return self.by_epoch and _due(self.interval, finished, of)

    def at_step(self, finished: int, of: int) -> bool:
        """Whether one is due after so many steps."""
        return (self.steps > 0 and finished % self.steps == 0) or (
            not self.by_epoch and _due(self.interval, finished, of)
        )


def _due(interval: int, finished: int, of: int) -> bool:
    return finished == of or (interval > 0 and finished % interval == 0)


def checkpoint_plan(section: Mapping[str, Any] | None, *, counts_epochs: bool) -> CheckpointPlan:
    """Read the config's ``checkpoint_config``.

    Raises:
        ValueError: A key is unknown or a value makes no sense.
    """
    given = {k: v for k, v in (section or {}).items() if k not in WITHOUT_EFFECT}
    known = [f.name for f in fields(CheckpointPlan)]
    for key in given:
        if key not in known:
            raise ValueError(
                f"checkpoint_config.{key} is not a setting; there are {', '.join(known)}"
            )
    plan = CheckpointPlan(**{"by_epoch": counts_epochs, **given})
    if not plan.save_optimizer:
        log.warning("checkpoint_config.save_optimizer=False: such checkpoints cannot be resumed")
    return plan


def remove_old(folder: Path, plan: CheckpointPlan) -> None:
    """Remove checkpoints beyond those to be kept, oldest first, with their checksums.

    The best ones have other names and stay. Of those in the middle of an epoch two are kept, so
    that one is left when the newest turns out damaged.
    """
    middle = _newest_first(folder.glob("step_[0-9]*.pth"))
    others = _newest_first([*folder.glob("epoch_[0-9]*.pth"), *folder.glob("iter_[0-9]*.pth")])
    kept = len(others) if plan.max_keep_ckpts < 0 else plan.max_keep_ckpts
    for path in [*middle[MIDDLE_KEPT:], *others[kept:]]:
        path.unlink(missing_ok=True)
    for sidecar in folder.glob("*.pth.sha256"):
        if not sidecar.with_suffix("").exists():
            sidecar.unlink(missing_ok=True)


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda p: (p.stat().st_mtime_ns, p.name), reverse=True)


class Age:
    """Tell when the last checkpoint is too old; the main rank's clock decides for all.

    Args:
        limit_s: Seconds; 0 for never.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.renew()

    def renew(self) -> None:
        """Begin anew, after a checkpoint."""
        self.written = time.monotonic()

    def is_too_old(self) -> bool:
        """Whether the limit is reached."""
        return 0 < self.limit_s <= time.monotonic() - self.written
