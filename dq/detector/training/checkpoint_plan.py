"""When a training writes checkpoints, their names, and which of them are kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mmcv import ConfigDict

from dq.detector.config.mmdet_keys import CHECKPOINT_KEYS, REFUSED_BY_NAME
from dq.detector.training.checkpoint_order import checkpoints_in, is_ours, newest_first
from dq.field_types import check_fields, check_value

log = logging.getLogger(__name__)
MIDDLE_KEPT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPlan:
    """The config's ``checkpoint_config``: the settings of mmcv's hook, and two of our own.

    Attributes:
        interval: Epochs between checkpoints, or steps if ``by_epoch`` is False; 0 or less for only
            the last one.
        by_epoch: Whether ``interval`` counts epochs.
        max_keep_ckpts: Number of newest checkpoints to keep, in addition to the best; 0 or less
            keeps all. Of the additional ones for resuming, two are kept.
        save_optimizer: Without the optimizer's state, a checkpoint cannot be resumed.
        save_last: Write one at the end, for any interval.
        out_dir: Folder for checkpoints, in subfolders for experiment and stage; None for the
            stage's own folder.
        create_symlink: Link ``latest.pth`` to the newest.
        meta: Added to each checkpoint's ``meta``.
        steps: Steps between additional checkpoints within an epoch; 0 for none.
        minutes: A checkpoint is written at the next step if the last one is this old; 0 for never.
    """

    interval: int = -1
    by_epoch: bool = True
    max_keep_ckpts: int = -1
    save_optimizer: bool = True
    save_last: bool = True
    out_dir: str | None = None
    create_symlink: bool = True
    meta: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 0
    minutes: float = 15.0

    def __post_init__(self) -> None:
        for name in ("interval", "max_keep_ckpts", "steps"):
            given = getattr(self, name)
            if not isinstance(given, int) or isinstance(given, bool):
                raise ValueError(f"checkpoint_config.{name} is {given!r}; use a whole number")
        for name in ("steps", "minutes"):
            given = getattr(self, name)
            if not isinstance(given, int | float) or given < 0:
                raise ValueError(f"checkpoint_config.{name} is {given!r}; use 0 or more")
        if self.out_dir is not None and "://" in str(self.out_dir):
            raise ValueError(
                f"checkpoint_config.out_dir is {self.out_dir}; checkpoints go to a disk, give a"
                " folder"
            )
        if not isinstance(self.meta, Mapping):
            raise ValueError(f"checkpoint_config.meta is {self.meta!r}; use a dict")
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        check_fields(given, CheckpointPlan, "checkpoint_config")

    def at_epoch(self, finished: int, of: int) -> bool:
        """Return whether a checkpoint is due after this number of epochs."""
        return self.by_epoch and self._due(finished, of)

    def at_step(self, finished: int, of: int) -> bool:
        """Return whether a checkpoint is due after this number of steps."""
        return (self.steps > 0 and finished % self.steps == 0) or self.counts_step(finished, of)

    def counts_step(self, finished: int, of: int) -> bool:
        """Return whether one is due after this number of steps by an ``interval`` in steps."""
        return not self.by_epoch and self._due(finished, of)

    def folder(self, of_stage: Path) -> Path:
        """Return the folder of a stage's checkpoints, except its last one."""
        if self.out_dir is None:
            return of_stage
        return Path(self.out_dir) / of_stage.parent.name / of_stage.name

    def _due(self, finished: int, of: int) -> bool:
        if finished == of and self.save_last:
            return True
        return self.interval > 0 and finished % self.interval == 0


def checkpoint_plan(section: Mapping[str, Any] | None, *, counts_epochs: bool) -> CheckpointPlan:
    """Read the config's ``checkpoint_config``; None writes only those for resuming.

    Raises:
        ValueError: A key is unknown or refused, or a value is invalid.
    """
    if section is None:
        return CheckpointPlan(save_last=False)
    given = dict(section)
    known = {key.name: key for key in CHECKPOINT_KEYS}
    for key in given:
        if key not in known:
            raise ValueError(
                f"checkpoint_config.{key} is not a setting; there are {', '.join(known)}"
            )
        if known[key].state == REFUSED_BY_NAME:
            raise ValueError(f"checkpoint_config.{key} cannot be set: {known[key].note}")
    kind = given.pop("type", "CheckpointHook")
    if kind != "CheckpointHook":
        raise ValueError(
            f"checkpoint_config.type is {kind}; leave it out, and add your own hook to custom_hooks"
        )
    storage = given.pop("file_client_args", None)
    check_value("checkpoint_config.file_client_args", storage, Mapping | None)
    backend = (storage or {}).get("backend", "disk")
    if backend not in ("disk", "local"):
        raise ValueError(
            f"checkpoint_config.file_client_args: backend {backend!r} is not there; checkpoints go"
            " to a disk, leave it out"
        )
    given.pop("sync_buffer", None)
    meta = given.get("meta")
    if isinstance(meta, ConfigDict):  # Reading mmcv's class back would need trust.
        given["meta"] = meta.to_dict()
    plan = CheckpointPlan(**{"by_epoch": counts_epochs, **given})
    if not plan.save_optimizer:
        log.warning("checkpoint_config.save_optimizer=False: such checkpoints cannot be resumed")
    return plan


def checkpoint_folder(config: Any, of_stage: Path) -> Path:
    """Return the folder of the checkpoints of a config's training.

    Raises:
        ValueError: As `checkpoint_plan`.
    """
    counts_epochs = config.runner.type == "EpochBasedRunner"
    return checkpoint_plan(config.checkpoint_config, counts_epochs=counts_epochs).folder(of_stage)


def remove_old(folder: Path, plan: CheckpointPlan) -> None:
    """Remove old checkpoints with their checksums, oldest first.

    Their age comes from their content, not from file times, so the newest always stays. A
    checkpoint without this content, or of another program, is neither counted nor removed. The best
    ones, and copies that the user made, have other names and stay. Of the ``step_N.pth``, which are
    only for resuming, two are kept, so that one is left if the newest is damaged.
    """
    middle, others = (
        [path for path in newest_first(checkpoints_in(folder, *kinds)) if is_ours(path)]
        for kinds in (("step",), ("epoch", "iter"))
    )
    kept = plan.max_keep_ckpts if plan.max_keep_ckpts > 0 else len(others)
    for path in [*middle[MIDDLE_KEPT:], *others[kept:]]:
        path.unlink(missing_ok=True)
    for sidecar in folder.glob("*.pth.sha256"):
        if not sidecar.with_suffix("").exists():
            sidecar.unlink(missing_ok=True)


class Age:
    """Checks whether the last checkpoint is too old; the main rank's clock decides for all.

    Args:
        limit_s: Seconds; 0 for never.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.renew()

    def renew(self) -> None:
        """Restart the clock after a checkpoint."""
        self.written = time.monotonic()

    def is_too_old(self) -> bool:
        """Return whether the limit is reached."""
        return 0 < self.limit_s <= time.monotonic() - self.written
