"""Train a detector with mmcv's runner: build what the config asks for, register hooks, run."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from mmcv import Config
from mmcv.runner import DistSamplerSeedHook, OptimizerHook, build_optimizer, build_runner
from mmdet.apis.train import auto_scale_lr
from torch import Tensor, nn

from dq.detector.amp import ScaledOptimizerHook, run_under_autocast
from dq.detector.build import explain
from dq.detector.data import dataset_of, training_loader
from dq.detector.graph import attach, parameters_outside, trace_detector
from dq.detector.hooks import (
    QuantizationHook,
    ShardedEvalHook,
    SyncBuffersHook,
    TidyCheckpointHook,
)
from dq.detector.refine import Refinery, added_losses, without_foreign_ema
from dq.detector.runner import RUNNER_OF
from dq.detector.step import ParallelDetector, add_train_step
from dq.dist import collectives
from dq.dist.data_parallel import unwrap, wrap
from dq.quant.learned import regroup_
from dq.quant.quantized_graph import CONTAINER, QuantizedGraph
from dq.quant.recipe import Recipe
from dq.quant.refinements import Refinements
from dq.quant.schedule import Schedule
from dq.quant.trace import BoundGraph

log = logging.getLogger("dq.train")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """A prepared detector's graph and how to train it, its weights still the float model's."""

    graph: QuantizedGraph
    recipe: Recipe
    schedule: Schedule
    refinements: Refinements = field(default_factory=Refinements)


def train(
    config: Config,
    detector: nn.Module,
    dataset: Any,
    *,
    work_dir: Path,
    device: torch.device,
    seed: int,
    quantization: Quantization | None = None,
    resume_from: Path | None = None,
    validate: bool = True,
    key: str = "",
) -> nn.Module:
    """Train as the config says and return the detector, unwrapped.

    Every rank must call it. Hooks, learning rates, clipping, evaluation and checkpoints are
    mmcv's and mmdet's, configured as for mmdet's ``tools/train.py``.

    Args:
        config: As `dq.detector.config.finish` returns it; not changed.
        detector: On the device, equal on all ranks.
        dataset: The training images.
        work_dir: Where checkpoints and logs go.
        device: Where the detector is.
        seed: Of the samplers and loader processes.
        quantization: Given for quantization-aware training; its ranges must be calibrated.
        resume_from: A checkpoint of this very training to continue from.
        validate: Evaluate on ``data.val`` as ``evaluation`` says.
        key: Digest of what decides the result; kept in each checkpoint's ``meta``.

    Raises:
        ValueError: The config asks for something that does not exist.
        RuntimeError: A loss is not finite, ranks differ, or a checkpoint cannot be written.
    """
    config = copy.deepcopy(config)
    if config.runner.type not in RUNNER_OF:
        raise ValueError(f"runner.type is {config.runner.type}; use one of {', '.join(RUNNER_OF)}")
    loaders = [training_loader(config, dataset, seed=seed)]
    if len(config.workflow) == 2:
        loaders.append(_validation_loss_loader(config, seed))
    graph = quantization.graph if quantization is not None else _float_graph(detector)
    if graph is not None:
        _leave_out_unused(detector, graph)
    refinery = None if quantization is None else _refinery(config, detector, quantization)
    if graph is not None:
        _run_on(detector, graph if refinery is None else refinery.network, config, device)
    elif config.get("fp16"):
        raise ValueError("fp16 needs a detector that can be traced; leave fp16 out")
    add_train_step(detector)
    model = wrap(
        detector,
        device=device,
        find_unused_parameters=bool(config.get("find_unused_parameters", False)),
        cls=ParallelDetector,
    )
    runner = _build_runner(config, model, dataset, work_dir, seed, quantization)
    runner.meta["key"] = key
    _register_hooks(runner, config, device, quantization, validate)
    if refinery is not None:
        assert quantization is not None
        runner.graph, runner.recipe = quantization.graph, quantization.recipe
        runner.average, runner.companions = refinery.average, refinery.companions
        for hook, priority in refinery.hooks:
            runner.register_hook(hook, priority=priority)
    if resume_from is not None:
        runner.resume(str(resume_from))
    elif quantization is None and config.load_from:
        runner.load_checkpoint(config.load_from)
    with added_losses(detector, [] if refinery is None else refinery.terms):
        runner.run(loaders, [tuple(flow) for flow in config.workflow])
    if refinery is not None and quantization is not None:
        refinery.finish(loaders[0], device)
        # Nothing is to be recorded for a loss any more.
        _run_on(detector, quantization.graph, config, device)
    return unwrap(runner.model)


def _run_on(
    detector: nn.Module, network: Callable[[Tensor], Any], config: Config, device: torch.device
) -> None:
    """Let mmdet's methods take their outputs from ``network``; a float detector only for fp16."""
    if config.get("fp16"):
        run_under_autocast(detector, network, device)
    elif hasattr(detector, CONTAINER):
        attach(detector, network)


def _refinery(config: Config, detector: nn.Module, quantization: Quantization) -> Refinery:
    settings = quantization.refinements
    kept, ema = without_foreign_ema(config.get("custom_hooks"), settings.ema)
    config.custom_hooks = kept
    return Refinery(detector, quantization.graph, quantization.schedule, replace(settings, ema=ema))


def _float_graph(detector: nn.Module) -> BoundGraph | None:
    try:
        return BoundGraph(detector, trace_detector(detector))
    except ValueError as error:
        log.info("trained without a graph: %s", error)
        return None


def _leave_out_unused(detector: nn.Module, graph: BoundGraph) -> None:
    """Take parameters that the network never reads out of training, and say so."""
    names = parameters_outside(detector, graph.graph)
    for name in names:
        detector.get_parameter(name).requires_grad_(False)
    if names:
        log.info("%d parameters are read by nothing and not trained: %s", len(names), names)


def _validation_loss_loader(config: Config, seed: int) -> Any:
    """Return mmdet's loader for ``('val', 1)`` in the workflow: losses on the validation split."""
    changed = copy.deepcopy(config)
    changed.data.val.pipeline = _innermost(config.data.train).pipeline
    return training_loader(config, dataset_of(changed, "val"), seed=seed)


def _innermost(section: Any) -> Any:
    while "dataset" in section:
        section = section.dataset
    return section


def _build_runner(
    config: Config,
    model: nn.Module,
    dataset: Any,
    work_dir: Path,
    seed: int,
    quantization: Quantization | None,
) -> Any:
    config.gpu_ids = [0]
    auto_scale_lr(config, collectives.world_size() > 1, log)
    try:
        optimizer = build_optimizer(model, config.optimizer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"optimizer cannot be built: {explain(error)}") from error
    if quantization is not None:
        factor = quantization.refinements.learned_lr
        learned = regroup_(optimizer, unwrap(model), lr_factor=factor)
        if learned:
            log.info("%d quantizer parameters are learned, at %g times the rate", learned, factor)
    meta = {
        "config": config.pretty_text,
        "CLASSES": tuple(dataset.CLASSES),
        "seed": seed,
        "world_size": collectives.world_size(),
        "exp_name": work_dir.name,
        "hook_msgs": {},
    }
    settings = {**config.runner, "type": RUNNER_OF[config.runner.type]}
    defaults = {
        "model": model,
        "optimizer": optimizer,
        "work_dir": str(work_dir),
        "logger": log,
        "meta": meta,
    }
    return build_runner(settings, default_args=defaults)


def _register_hooks(
    runner: Any,
    config: Config,
    device: torch.device,
    quantization: Quantization | None,
    validate: bool,
) -> None:
    optimizer_config = dict(config.optimizer_config or {})
    if config.get("fp16"):
        optimizer_hook: Any = ScaledOptimizerHook(
            loss_scale=config.fp16.get("loss_scale", "dynamic"),
            device=device,
            grad_clip=optimizer_config.get("grad_clip"),
        )
    elif "type" in optimizer_config:
        optimizer_hook = optimizer_config
    else:
        optimizer_hook = OptimizerHook(**optimizer_config)
    checkpoint_config = dict(config.checkpoint_config or {})
    checkpoint_config.setdefault("by_epoch", runner.counts_epochs)
    try:
        runner.register_training_hooks(
            config.lr_config,
            optimizer_hook,
            {"type": TidyCheckpointHook.__name__, **checkpoint_config},
            config.log_config,
            config.get("momentum_config"),
            custom_hooks_config=config.get("custom_hooks"),
        )
    except (KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"a hook of the config cannot be built: {explain(error)}") from error
    if runner.counts_epochs and collectives.world_size() > 1:
        runner.register_hook(DistSamplerSeedHook())
    evaluation = {**config.get("evaluation", {}), "by_epoch": runner.counts_epochs}
    interval = min(checkpoint_config.get("interval", 1) or 1, evaluation.get("interval", 1))
    runner.register_hook(SyncBuffersHook(interval), priority="ABOVE_NORMAL")
    if quantization is not None:
        hook = QuantizationHook(quantization.graph, quantization.schedule)
        runner.register_hook(hook, priority="HIGH")
    if validate and "val" in config.data:
        dataset = dataset_of(config, "val", test_mode=True)
        loader = torch.utils.data.DataLoader(dataset)
        workers = config.data.get("val_dataloader", {}).get("workers_per_gpu", 1)
        runner.register_hook(ShardedEvalHook(loader, workers=workers, **evaluation), priority="LOW")
