"""Hooks of the config: which of them cannot work in this training, and when loggers speak."""

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

from dq.detector.training.checkpoint_plan import CheckpointPlan
from dq.detector.training.exact_runner import is_known

log = logging.getLogger(__name__)
# Of mmcv's hook of checkpoints.
MMCVS_PRIORITY = 50
TAKEN_OVER = {
    "SyncBuffersHook": "running statistics are averaged over ranks before each evaluation, and in"
    " each checkpoint"
}


def without_taken_over(hooks: Any) -> list[Any]:
    """Return ``custom_hooks`` as a list, less those whose work is done here anyway.

    Raises:
        ValueError: One of them steps the optimizer, which ``optimizer_config`` is for.
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
                f"custom_hooks: {kind.__name__} would step a second time; name it in"
                f" optimizer_config=dict(type='{kind.__name__}') instead"
            )
        kept.append(hook)
    return kept


def check_hooks(runner: Any, detector: nn.Module, dataset: Any, device: torch.device) -> None:
    """Raise ValueError for a hook that this detector, data set or runner cannot serve.

    mmdet's own runner would fail at it too, in the midst of the training.

    Args:
        runner: With all its hooks.
        detector: What is trained.
        dataset: The training images.
        device: Where the detector is.
    """
    for hook in runner.hooks:
        name = type(hook).__name__
        if isinstance(hook, SyncRandomSizeHook):
            _need(dataset, "update_dynamic_scale", name, "several img_scale in a Resize transform")
            hook.device = device
        if isinstance(hook, RFSearchHook):
            raise ValueError(
                f"custom_hooks: {name} changes the network while it is trained, which is not"
                " supported; search with mmdet's own tools and write the dilations that it finds"
                " into the config's model"
            )
        if isinstance(hook, SetEpochInfoHook):
            _need(detector, "set_epoch", name, "no such hook")
        if isinstance(hook, YOLOXModeSwitchHook) and _switches(runner, hook):
            _need(dataset, "update_skip_type_keys", name, "a MultiImageMixDataset")
            _need(detector, "bbox_head", name, "no such hook")
        if isinstance(hook, LrUpdaterHook) and hook.warmup_by_epoch and not runner.counts_epochs:
            raise ValueError(
                f"lr_config: warmup_by_epoch needs a runner that counts epochs, not {name} with"
                " IterBasedRunner; give warmup_iters in iterations"
            )


def _switches(runner: Any, hook: Any) -> bool:
    return bool(runner.counts_epochs and runner.max_epochs > hook.num_last_epochs)


def _need(owner: Any, method: str, hook: str, fix: str) -> None:
    if not hasattr(owner, method):
        raise ValueError(
            f"custom_hooks: {hook} needs {method}, which {type(owner).__name__} has not; use {fix}"
        )


class CheckpointPlace(CheckpointHook):  # type: ignore[misc]
    """Stands where mmcv's hook of checkpoints stands, for hooks that look for it.

    Checkpoints are written when all hooks are done, so that going on from one is exact. A hook of
    the user's own may want to read the file before; then it is written here too.

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
        """Write the epoch's checkpoint where a hook may want it."""
        if (
            runner.counts_epochs
            and runner.plan.at_epoch(runner.epoch + 1, runner.max_epochs)
            and any(_may_read_checkpoints(hook, "after_train_epoch") for hook in runner.hooks)
        ):
            runner.save_training(at_end_of_epoch=True)

    def after_train_iter(self, runner: Any) -> None:
        """Write the step's checkpoint where a hook may want it."""
        if (
            not runner.counts_epochs
            and runner.plan.at_step(runner.iter + 1, runner.max_iters)
            and any(_may_read_checkpoints(hook, "after_train_iter") for hook in runner.hooks)
        ):
            runner.save_training(after_this_step=True)


def _may_read_checkpoints(hook: Any, stage: str) -> bool:
    if isinstance(hook, MMDetWandbHook):
        return True  # It takes the last one even where it is told to take none.
    if isinstance(hook, PaviLoggerHook):
        return bool(hook.add_ckpt)
    late = not is_known(hook) and hook.priority >= MMCVS_PRIORITY
    return late and stage in hook.get_triggered_stages()


def log_in_time(runner: Any, steps: int) -> None:
    """Let every logger speak at least once an epoch, and once in a training by iteration.

    mmcv's loggers are silent where an epoch has fewer steps than their interval.

    Args:
        runner: With all its hooks.
        steps: Of an epoch.
    """
    most = max(1, steps if runner.counts_epochs else runner.max_iters)
    for hook in runner.hooks:
        if isinstance(hook, LoggerHook) and hook.interval > most:
            log.info("%s logs every %d steps: there are no more", type(hook).__name__, most)
            hook.interval = most
