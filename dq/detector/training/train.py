"""Train a detector with mmcv's runner: build what the config asks for, register hooks, run."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mmdet
import torch
from mmcv import Config
from mmcv.runner import build_runner
from mmdet.core import build_optimizer
from mmdet.utils import collect_env
from torch import nn

from dq.detector.config.addresses import local_file
from dq.detector.config.config_text import config_text
from dq.detector.config.registry_errors import explain
from dq.detector.data.data_section import has_section
from dq.detector.data.datasets import dataset_of, validation_loss_dataset
from dq.detector.data.evaluated_sets import save_best_on
from dq.detector.data.leaves import classes_of
from dq.detector.data.loader_options import evaluation_workers
from dq.detector.hooks.evaluation import EpochCheckpointHook, ShardedEvalHook
from dq.detector.hooks.quantization import (
    AgreementHook,
    QuantEMAHook,
    QuantizationHook,
    StragglerHook,
    SyncBuffersHook,
)
from dq.detector.hooks.runaway import RunawayHook
from dq.detector.hooks.start import StartHook
from dq.detector.hooks.tracking import Figures, TrackingHook
from dq.detector.hooks.weight_average import averaged_by, without_ema_hooks
from dq.detector.loading.training_loader import TrainingLoader, training_loader
from dq.detector.model.autocast import run_under_autocast
from dq.detector.model.compilation import Network, compilation, compiled
from dq.detector.model.graph import attach, parameters_outside, trace_detector
from dq.detector.step.optimizer_config import optimizer_step
from dq.detector.step.optimizer_step import OptimizerStep
from dq.detector.step.parallel_detector import LoneDetector, ParallelDetector
from dq.detector.step.supervision import Supervision
from dq.detector.training.checkpoint_order import ATTEMPT, next_attempt
from dq.detector.training.checkpoint_plan import CheckpointPlan, checkpoint_plan
from dq.detector.training.hook_checks import (
    CheckpointPlace,
    check_hooks,
    log_in_time,
    without_taken_over,
)
from dq.detector.training.refinements import Refinery, added_losses
from dq.detector.training.runners import RUNNER_OF
from dq.dist.exchange import collectives
from dq.dist.exchange.data_parallel import sync_buffers_, unwrap, wrap
from dq.dist.files.checkpoint import load_checkpoint
from dq.dist.rendezvous.restarts import torchrun_agent
from dq.dist.work.all_here import wait_for_all_ranks
from dq.dist.work.on_main_rank import on_main_rank
from dq.quant.graph.quantized_graph import CONTAINER, QuantizedGraph
from dq.quant.graph.trace import BoundGraph
from dq.quant.quantizers.factory import regroup_
from dq.quant.recipes.recipe import Recipe
from dq.quant.training.refinements import Refinements
from dq.quant.training.schedule import Schedule
from dq.tracking.tracker import Tracker

log = logging.getLogger("dq.train")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """A checkpoint to continue a training from.

    Attributes:
        content: As read, the same on all ranks; tensors of this rank are put into it.
        source: Its name, for messages.
        new_optimizer_settings: The optimizer's settings are to be the config's, not its own.
        new_micro_batches: So are the micro-batches of a step.
    """

    content: dict[str, Any]
    source: str
    new_optimizer_settings: bool = False
    new_micro_batches: bool = False

    @property
    def chunks_per_step(self) -> int | None:
        """Micro-batches of one step over all ranks; None for what the config says."""
        if self.new_micro_batches:
            return None
        found: int | None = self.content.get("training", {}).get("chunks_per_step")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """A prepared detector's graph and how to train it, its weights still the float model's.

    Attributes:
        graph: With ranges.
        recipe: What it was prepared with.
        schedule: When it observes, rounds and freezes.
        refinements: Extras.
        start: Its metrics on ``data.val`` as it is, where they are known.
    """

    graph: QuantizedGraph
    recipe: Recipe
    schedule: Schedule
    refinements: Refinements = field(default_factory=Refinements)
    start: Mapping[str, float] | None = None


def train(
    config: Config,
    detector: nn.Module,
    dataset: Any,
    *,
    work_dir: Path,
    device: torch.device,
    seed: int,
    quantization: Quantization | None = None,
    resume: Resume | None = None,
    validate: bool = True,
    key: str = "",
    supervision: Supervision | None = None,
    tracker: Tracker | None = None,
    figures: Figures | None = None,
    meta: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Train as the config says and return the detector, unwrapped.

    Every rank must call it. Hooks, learning rates, clipping, evaluation and checkpoints are
    mmcv's and mmdet's, configured as for mmdet's ``tools/train.py``.

    Args:
        config: As `dq.detector.config.read.finish` returns it; not changed.
        detector: On the device, equal on all ranks.
        dataset: The training images.
        work_dir: Where checkpoints and logs go.
        device: Where the detector is.
        seed: Of the samplers and loader processes.
        quantization: Given for quantization-aware training; its ranges must be calibrated.
        resume: A checkpoint of this very training to continue from.
        validate: Evaluate on ``data.val`` as ``evaluation`` says.
        key: Digest of what decides the result; kept in each checkpoint's ``meta``.
        supervision: Who watches the training.
        tracker: Takes what is worth keeping; its run's id goes into each checkpoint's ``meta``.
        figures: Measures all quantizers after each epoch.
        meta: More for each checkpoint's ``meta``.

    Raises:
        ValueError: The config asks for something that does not exist.
        RuntimeError: A loss is not finite, ranks differ, or a checkpoint cannot be written.
        Stopped: A signal asked for it; a checkpoint to go on from has been written.
    """
    # Each rank has read the data set from a disk that another may have had in memory.
    wait_for_all_ranks("the beginning of a training")
    supervision = supervision or Supervision()
    config = copy.deepcopy(config)
    if config.runner.type not in RUNNER_OF:
        raise ValueError(f"runner.type is {config.runner.type}; use one of {', '.join(RUNNER_OF)}")
    counts_epochs = config.runner.type == "EpochBasedRunner"
    if config.get("compile") and quantization is not None and quantization.refinements.distill:
        raise ValueError(
            "compile and quant.distill do not go together: the teacher's features are recorded"
            " while the network runs; leave one of them out"
        )
    plan = checkpoint_plan(config.checkpoint_config, counts_epochs=counts_epochs)
    step_hook = optimizer_step(config, supervision, device)
    loader = training_loader(
        config,
        dataset,
        seed=seed,
        chunks_per_step=None if resume is None else resume.chunks_per_step,
        max_bad=supervision.guards.max_bad_images,
    )
    loaders = _loaders(config, loader, seed)
    graph = quantization.graph if quantization is not None else _float_graph(detector)
    if graph is not None:
        _leave_out_unused(detector, graph)
    refinery = rule = None
    if quantization is None:
        config.custom_hooks, rule = without_ema_hooks(config.get("custom_hooks"))
    else:
        refinery = _refinery(config, detector, quantization)
    if graph is not None:
        _run_on(detector, graph if refinery is None else refinery.network, config, device)
    else:
        for setting in ("fp16", "compile"):
            if config.get(setting):
                raise ValueError(f"{setting} needs a detector that can be traced; leave it out")
    model = wrap(
        detector,
        device=device,
        find_unused_parameters=bool(config.get("find_unused_parameters", False)),
        cls=ParallelDetector,
        late=[p for n, p in detector.named_parameters() if n.startswith(f"{CONTAINER}.")],
    )
    if model is detector:
        model = LoneDetector(detector)
    _scale_learning_rate(config, loader)
    runner = _build_runner(config, model, dataset, work_dir, seed, quantization)
    runner.meta.update(meta or {}, key=key)
    agents = collectives.all_gather_objects(torchrun_agent())
    runner.meta["agents"] = sorted({name for name in agents if name})
    runner.meta[ATTEMPT] = on_main_rank(lambda: next_attempt(plan.folder(work_dir)))
    runner.supervise(supervision, plan)
    runner.steps_per_epoch = len(loader)
    if tracker is not None:
        runner.tracker = tracker
        runner.meta["run_id"] = None if tracker.run is None else tracker.run.id
    _register_hooks(runner, config, step_hook, plan, quantization, validate)
    interval = config.log_config.interval
    tracking = TrackingHook(interval, by_epoch=runner.counts_epochs, figures=figures)
    runner.register_hook(tracking, priority="VERY_LOW")
    if refinery is not None:
        assert quantization is not None
        runner.graph, runner.recipe = quantization.graph, quantization.recipe
        runner.average, runner.companions = refinery.average, refinery.companions
        for hook, priority in refinery.hooks:
            runner.register_hook(hook, priority=priority)
    elif rule is not None:
        runner.average = averaged_by(rule, detector)
        runner.companions = {"average": runner.average}
        runner.register_hook(QuantEMAHook(runner.average), priority=45)
    check_hooks(runner, detector, dataset, device)
    log_in_time(runner, len(loader))
    if resume is not None:
        new_settings = resume.new_optimizer_settings
        runner.resume_training(resume.content, resume.source, len(loader), new_settings)
        runner.say_if_finished(resume.source)
    elif quantization is None and config.load_from:
        content = on_main_rank(lambda: load_checkpoint(local_file(config.load_from)))
        runner.load_weights(content, str(config.load_from))
        if runner.average is not None:
            runner.average.begin_()
    terms = [] if refinery is None else refinery.terms
    with added_losses(detector, terms), supervision.over("the start"):
        runner.run(loaders, [tuple(flow) for flow in config.workflow])
    if refinery is not None and quantization is not None:
        refinery.finish(loaders[0], device)
        # Nothing is to be recorded for a loss any more, and no step compiled.
        config.compile = False
        _run_on(detector, quantization.graph, config, device)
    elif runner.average is not None:
        runner.average.swap_()
        runner.average = None
        sync_buffers_(detector)
    return unwrap(runner.model)


def _run_on(detector: nn.Module, network: Network, config: Config, device: torch.device) -> None:
    """Let mmdet's methods take their outputs from ``network``, compiled and rounded as set.

    A float detector runs on its graph for one of these two only.
    """
    settings = compilation(config, device)
    if settings is not None:
        network = compiled(network, detector, settings)
    if config.get("fp16"):
        run_under_autocast(detector, network, device)
    elif settings is not None or hasattr(detector, CONTAINER):
        attach(detector, network)


def _refinery(config: Config, detector: nn.Module, quantization: Quantization) -> Refinery:
    settings = quantization.refinements
    config.custom_hooks, rule = without_ema_hooks(config.get("custom_hooks"))
    return Refinery(detector, quantization.graph, quantization.schedule, settings, rule)


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


def _loaders(config: Config, loader: TrainingLoader, seed: int) -> list[TrainingLoader]:
    """Return a loader for each part of the workflow; ``('val', 1)`` computes validation losses."""
    modes = [mode for mode, _ in config.workflow]
    if modes.count("train") != 1 or modes.count("val") != len(modes) - 1 or len(modes) > 2:
        raise ValueError(
            f"workflow is {config.workflow}; use [('train', 1)] or [('train', 1), ('val', 1)]"
        )
    return [
        loader
        if mode == "train"
        else training_loader(config, validation_loss_dataset(config), seed=seed)
        for mode in modes
    ]


def _build_runner(
    config: Config,
    model: nn.Module,
    dataset: Any,
    work_dir: Path,
    seed: int,
    quantization: Quantization | None,
) -> Any:
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
        "config": config_text(config),
        "CLASSES": classes_of(dataset, "train"),
        "seed": seed,
        "world_size": collectives.world_size(),
        "exp_name": Path(config.filename or work_dir).name,
        "env_info": "\n".join(f"{name}: {value}" for name, value in collect_env().items()),
        "mmdet_version": mmdet.__version__,
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


def _scale_learning_rate(config: Config, loader: TrainingLoader) -> None:
    """Scale the rate as mmdet's ``auto_scale_lr`` does, by the images of a step on all ranks.

    Unlike mmdet's own it does not change when a training goes on with other ranks.
    """
    settings = config.get("auto_scale_lr") or {}
    if not settings.get("enable", False):
        return
    images = loader.chunks_per_step * loader.samples_per_chunk
    base = settings.get("base_batch_size")
    if not base:
        log.warning("auto_scale_lr has no base_batch_size, so the learning rate is not scaled")
        return
    if not isinstance(config.optimizer.get("lr"), int | float):
        raise ValueError("auto_scale_lr scales optimizer.lr, which the config does not have")
    config.optimizer.lr *= images / base
    log.info(
        "learning rate scaled to %g: %d images a step, not %d", config.optimizer.lr, images, base
    )


def _register_hooks(
    runner: Any,
    config: Config,
    step_hook: OptimizerStep | None,
    plan: CheckpointPlan,
    quantization: Quantization | None,
    validate: bool,
) -> None:
    runner.optimizer_step = step_hook
    # The first of its priority, as in mmcv.
    runner.register_hook(CheckpointPlace(plan), priority="NORMAL")
    try:
        runner.register_training_hooks(
            config.lr_config,
            step_hook or dict(config.optimizer_config),
            None,
            config.log_config,
            config.get("momentum_config"),
            custom_hooks_config=without_taken_over(config.get("custom_hooks")),
        )
    except (KeyError, TypeError, ValueError, ImportError, AssertionError) as error:
        raise ValueError(f"a hook of the config cannot be built: {explain(error)}") from error
    evaluation = {**config.get("evaluation", {}), "by_epoch": runner.counts_epochs}
    runner.register_hook(SyncBuffersHook(), priority="ABOVE_NORMAL")
    runner.register_hook(StragglerHook(config.log_config.interval), priority="VERY_LOW")
    # The last of all: what the others did to the epoch is in it.
    runner.register_hook(EpochCheckpointHook(), priority="LOWEST")
    if quantization is not None:
        hook = QuantizationHook(quantization.graph, quantization.schedule)
        runner.register_hook(hook, priority="HIGH")
        # After the optimizer (40), before frozen weights (44) and their average (45).
        runner.register_hook(AgreementHook(quantization.graph), priority=43)
        if runner.supervision.guards.runaway != "off":
            runner.register_hook(RunawayHook(runner.supervision.guards), priority=46)
    if validate and not has_section(config, "val"):
        log.warning("nothing is evaluated while training: the config has no data.val section")
    elif validate:
        dataset = dataset_of(config, "val", test_mode=True)
        loader = torch.utils.data.DataLoader(dataset)
        workers = evaluation_workers(config, "val")
        if "save_best" in evaluation:
            evaluation["save_best"] = save_best_on(dataset, evaluation["save_best"])
        hook = ShardedEvalHook(loader, workers=workers, **evaluation)
        runner.register_hook(hook, priority="LOW")
        if quantization is not None:
            start = StartHook(
                quantization.graph,
                hook,
                evaluation,
                runner.supervision.guards,
                quantization.start,
            )
            runner.register_hook(start, priority="LOW")
