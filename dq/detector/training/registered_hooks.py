"""Register the hooks of the config and our own, in mmcv's order of priorities."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import torch
from mmcv import Config

from dq.detector.config.registry_errors import explain
from dq.detector.data.data_section import has_section
from dq.detector.data.datasets import dataset_of
from dq.detector.data.evaluated_sets import save_best_on
from dq.detector.data.loader_options import evaluation_workers
from dq.detector.hooks.evaluation import EpochCheckpointHook, ShardedEvalHook
from dq.detector.hooks.progress import ProgressHook
from dq.detector.hooks.quantization import (
    AgreementHook,
    FrozenNormHook,
    QuantizationHook,
    StragglerHook,
    SyncBuffersHook,
)
from dq.detector.hooks.start import StartHook
from dq.detector.hooks.text_log import spare_training_
from dq.detector.hooks.tracking import Figures, TrackingHook
from dq.detector.refinements.extras import Extras
from dq.detector.training.assignment import Continued, Quantization
from dq.detector.training.hook_checks import CheckpointPlace, without_taken_over
from dq.progress import has_bar

log = logging.getLogger("dq.train")


def register_hooks(
    runner: Any,
    config: Config,
    extras: Extras,
    *,
    quantization: Quantization | None,
    continued: Continued | None,
    figures: Figures | None,
    validate: bool,
) -> None:
    """Register all hooks of a training. Among equal priorities, the first registered runs first.

    Args:
        runner: Built with its equipment.
        config: Of the training.
        extras: Has further hooks.
        quantization: Given for quantization-aware training.
        continued: Given for a float detector that is trained further.
        figures: Measures all quantizers after each epoch.
        validate: Evaluate on ``data.val``.

    Raises:
        ValueError: A hook of the config cannot be built, or ``data.val`` cannot be evaluated.
    """
    # Registered as the first hook of its priority, as in mmcv.
    runner.register_hook(CheckpointPlace(runner.plan), priority="NORMAL")
    _register_configured(runner, config)
    runner.register_hook(SyncBuffersHook(), priority="ABOVE_NORMAL")
    runner.register_hook(StragglerHook(config.log_config.interval), priority="VERY_LOW")
    # The last of all hooks, so that the checkpoint includes the changes of all others.
    runner.register_hook(EpochCheckpointHook(), priority="LOWEST")
    if quantization is not None:
        _register_quantization(runner, quantization)
    if continued is not None:
        runner.register_hook(FrozenNormHook(continued.schedule), priority="HIGH")
    _register_guards(runner, is_float=quantization is None)
    if validate and not has_section(config, "val"):
        log.warning("nothing is evaluated while training: the config has no data.val section")
    elif validate:
        _register_evaluation(runner, config, quantization)
    interval = config.log_config.interval
    tracking = TrackingHook(interval, by_epoch=runner.counts_epochs, figures=figures)
    runner.register_hook(tracking, priority="VERY_LOW")
    if has_bar():
        runner.register_hook(ProgressHook(), priority="VERY_LOW")
    for hook, priority in extras.hooks:
        runner.register_hook(hook, priority=priority)


def _register_configured(runner: Any, config: Config) -> None:
    try:
        runner.register_training_hooks(
            config.lr_config,
            runner.optimizer_step or dict(config.optimizer_config),
            None,
            config.log_config,
            config.get("momentum_config"),
            custom_hooks_config=without_taken_over(config.get("custom_hooks")),
        )
    except (KeyError, TypeError, ValueError, ImportError, AssertionError) as error:
        raise ValueError(f"a hook of the config cannot be built: {explain(error)}") from error
    spare_training_(runner.hooks)


def _register_quantization(runner: Any, quantization: Quantization) -> None:
    hook = QuantizationHook(quantization.graph, quantization.schedule)
    runner.register_hook(hook, priority="HIGH")
    runner.register_hook(FrozenNormHook(quantization.schedule), priority="HIGH")
    # After the optimizer (40), before frozen weights (44) and their average (45).
    runner.register_hook(AgreementHook(quantization.graph), priority=43)


def _register_guards(runner: Any, *, is_float: bool) -> None:
    guards = runner.supervision.guards
    for named in guards.hooks():
        module, _, name = named.partition(":")
        kind = getattr(importlib.import_module(f"dq.detector.hooks.{module}"), name)
        if kind.FLOAT_TOO or not is_float:
            runner.register_hook(kind(guards), priority=kind.PRIORITY)


def _register_evaluation(runner: Any, config: Config, quantization: Quantization | None) -> None:
    settings: dict[str, Any] = {**config.get("evaluation", {}), "by_epoch": runner.counts_epochs}
    dataset = dataset_of(config, "val", test_mode=True)
    loader = torch.utils.data.DataLoader(dataset)
    workers = evaluation_workers(config, "val")
    if "save_best" in settings:
        settings["save_best"] = save_best_on(dataset, settings["save_best"])
    hook = ShardedEvalHook(loader, workers=workers, **settings)
    runner.register_hook(hook, priority="LOW")
    if quantization is not None:
        guards, known = runner.supervision.guards, quantization.start
        start = StartHook(quantization.graph, hook, settings, guards, known)
        runner.register_hook(start, priority="LOW")
