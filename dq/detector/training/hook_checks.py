"""Check the config's hooks: which ones cannot work in this training, and when loggers log."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import RFSearchHook
from mmcv.runner import (
    HOOKS,
    CheckpointHook,
    LoggerHook,
    LrUpdaterHook,
    OptimizerHook,
    PaviLoggerHook,
)
from mmdet.core.hook import (
    MMDetWandbHook,
    SetEpochInfoHook,
    SyncRandomSizeHook,
    YOLOXModeSwitchHook,
)
from torch import nn

from dq.counted import counted
from dq.detector.training.checkpoint_plan import CheckpointPlan
from dq.detector.training.exact_runner import is_known

log = logging.getLogger(__name__)
# Priority of mmcv's CheckpointHook.
MMCVS_PRIORITY = 50
TAKEN_OVER = {
    "SyncBuffersHook": "running statistics are averaged over ranks before each evaluation, and in"
    " each checkpoint"
}


def without_taken_over(hooks: Any) -> list[Any]:
    """Return ``custom_hooks`` as a list, without those whose work is already done here.

    Raises:
        ValueError: A hook runs the optimizer, which belongs in ``optimizer_config``.
    """
    if hooks is None:
        return []
    kept = []
    for hook in hooks if isinstance(hooks, Sequence) else [hooks]:
        name = hook.get("type") if isinstance(hook, Mapping) else None
        if name in TAKEN_OVER:
            log.info("custom_hooks: %s is not needed, %s", name, TAKEN_OVER[str(name)])
            continue
        kind = HOOKS.get(name) if isinstance(name, str) else type(hook)
        if kind is not None and issubclass(kind, OptimizerHook):
            raise ValueError(
                f"custom_hooks: {kind.__name__} would run the optimizer a second time; name it in"
                f" optimizer_config=dict(type='{kind.__name__}') instead"
            )
        kept.append(hook)
    return kept


def check_hooks(runner: Any, detector: nn.Module, dataset: Any, device: torch.device) -> None:
    """Raise ValueError for a hook that does not work with this detector, data set or runner.

    mmdet's own runner would fail too, but during the training.

    Args:
        runner: With all its hooks.
        detector: The trained detector.
        dataset: The training images.
        device: Device of the detector.
    """
    for hook in runner.hooks:
        name = type(hook).__name__
        if isinstance(hook, SyncRandomSizeHook):
            _need(dataset, "update_dynamic_scale", name, "several img_scale in a Resize transform")
            hook.device = device
        if isinstance(hook, RFSearchHook):
            raise ValueError(
                f"custom_hooks: {name} changes the network during training, which is not"
                " supported; search with mmdet's own tools and write the dilations that it finds"
                " into the config's model"
            )
        if isinstance(hook, SetEpochInfoHook):
            _need(detector, "set_epoch", name)
        if isinstance(hook, YOLOXModeSwitchHook) and _switches(runner, hook):
            _need(dataset, "update_skip_type_keys", name, "a MultiImageMixDataset")
            _need(detector, "bbox_head", name)
        if isinstance(hook, LrUpdaterHook) and hook.warmup_by_epoch and not runner.counts_epochs:
            raise ValueError(
                f"lr_config: warmup_by_epoch needs a runner that counts epochs, not {name} with"
                " IterBasedRunner; give warmup_iters in iterations"
            )


def _switches(runner: Any, hook: Any) -> bool:
    return bool(runner.counts_epochs and runner.max_epochs > hook.num_last_epochs)


def _need(owner: Any, method: str, hook: str, other: str = "") -> None:
    """Raise ValueError if the method is missing; ``other`` says what would have it."""
    if not hasattr(owner, method):
        mend = f"use {other}, or remove" if other else "remove"
        raise ValueError(
            f"custom_hooks: {hook} needs {method}, which {type(owner).__name__} lacks; {mend} this"
            " hook from custom_hooks"
        )


class CheckpointPlace(CheckpointHook):  # type: ignore[misc]
    """A stand-in for mmcv's CheckpointHook, for hooks that look for it.

    Checkpoints are written after all hooks, so that resuming is exact. A custom hook may need to
    read the file earlier; then it is written here too.

    Args:
        plan: When checkpoints are due.
    """

    def __init__(self, plan: CheckpointPlan) -> None:
        super().__init__(
            interval=plan.interval,
            by_epoch=plan.by_epoch,
            save_optimizer=plan.save_optimizer,
            max_keep_ckpts=plan.max_keep_ckpts,
        )

    def after_train_epoch(self, runner: Any) -> None:
        """Write the epoch's checkpoint if a hook may need it."""
        if (
            runner.counts_epochs
            and runner.plan.at_epoch(runner.epoch + 1, runner.max_epochs)
            and any(_may_read_checkpoints(hook, "after_train_epoch") for hook in runner.hooks)
        ):
            runner.save_training(at_end_of_epoch=True)

    def after_train_iter(self, runner: Any) -> None:
        """Write the step's checkpoint if a hook may need it."""
        if (
            not runner.counts_epochs
            and runner.plan.at_step(runner.iter + 1, runner.max_iters)
            and any(_may_read_checkpoints(hook, "after_train_iter") for hook in runner.hooks)
        ):
            runner.save_training(after_this_step=True)


def _may_read_checkpoints(hook: Any, stage: str) -> bool:
    if isinstance(hook, MMDetWandbHook):
        return True  # It uses the last one even if it is configured to use none.
    if isinstance(hook, PaviLoggerHook):
        return bool(hook.add_ckpt)
    late = not is_known(hook) and hook.priority >= MMCVS_PRIORITY
    return late and stage in hook.get_triggered_stages()


def log_in_time(runner: Any, steps: int) -> None:
    """Make every logger log at least once per epoch, or once in a training by iteration.

    mmcv's loggers log nothing if an epoch has fewer steps than their interval.

    Args:
        runner: With all its hooks.
        steps: Steps of an epoch.
    """
    most = max(1, steps if runner.counts_epochs else runner.max_iters)
    for hook in runner.hooks:
        if isinstance(hook, LoggerHook) and hook.interval > most:
            log.info(
                "%s logs every %s: %s has no more",
                type(hook).__name__,
                counted(most, "step[s]"),
                "an epoch" if runner.counts_epochs else "the training",
            )
            hook.interval = most
