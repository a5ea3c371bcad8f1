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
from dq.detector.hooks.weight_average import AverageRule, averaged_by, without_ema_hooks
from dq.detector.loading.training_loader import TrainingLoader, training_loader
from dq.detector.model.autocast import run_under_autocast
from dq.detector.model.compilation import Network, compilation, compiled
from dq.detector.model.graph import attach, parameters_outside, trace_detector
from dq.detector.step.optimizer_config import optimizer_step
from dq.detector.step.parallel_detector import LoneDetector, ParallelDetector
from dq.detector.step.supervision import Supervision
from dq.detector.training.checkpoint_order import ATTEMPT, next_attempt
from dq.detector.training.checkpoint_plan import CheckpointPlan, checkpoint_plan
from dq.detector.training.exact_runner import Equipment
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
from dq.quant.training.weight_average import WeightAverage
from dq.tracking.tracker import Tracker

log = logging.getLogger("dq.train")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """A checkpoint to continue a training from.

    Attributes:
        content: Content of the file, equal on all ranks; tensors of this rank are inserted.
        source: Its name, for messages.
        new_optimizer_settings: Take the optimizer's settings from the config.
        new_micro_batches: Take the number of micro-batches of a step from the config.
    """

    content: dict[str, Any]
    source: str
    new_optimizer_settings: bool = False
    new_micro_batches: bool = False

    @property
    def chunks_per_step(self) -> int | None:
        """Number of micro-batches of a step over all ranks; None to use the config's."""
        if self.new_micro_batches:
            return None
        found: int | None = self.content.get("training", {}).get("chunks_per_step")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """A prepared detector's graph and the settings of its training.

    Attributes:
        graph: With ranges; the weights are still those of the float model.
        recipe: The recipe that the graph was prepared with.
        schedule: When the quantizers observe, fake-quantize and freeze.
        refinements: Optional methods of QAT.
        start: Metrics on ``data.val`` before training, or None if they are unknown.
    """

    graph: QuantizedGraph
    recipe: Recipe
    schedule: Schedule
    refinements: Refinements = field(default_factory=Refinements)
    start: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """The surroundings of a training: folder, device, supervision and tracking.

    Attributes:
        work_dir: Folder for checkpoints and logs.
        device: The device of the detector.
        supervision: Watches the training: signals, guards, clocks.
        tracker: Records the training; its run's id is written into each checkpoint's ``meta``.
            None to record nothing.
        figures: Measures all quantizers after each epoch.
        key: Digest of everything that decides the result; written into each checkpoint's ``meta``.
        meta: Further entries for each checkpoint's ``meta``.
        trusted: Whether the file of ``load_from`` may be unpickled.
    """

    work_dir: Path
    device: torch.device
    supervision: Supervision = field(default_factory=Supervision)
    tracker: Tracker | None = None
    figures: Figures | None = None
    key: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    trusted: bool = False


def train(
    config: Config,
    detector: nn.Module,
    dataset: Any,
    place: Workplace,
    *,
    seed: int,
    quantization: Quantization | None = None,
    resume: Resume | None = None,
    validate: bool = True,
) -> nn.Module:
    """Train as the config says and return the detector without DDP; every rank must call it.

    Hooks, learning rates, clipping, evaluation and checkpoints are those of mmcv and mmdet,
    configured as for mmdet's ``tools/train.py``.

    Args:
        config: Result of `dq.detector.config.read.finish`; it is not changed.
        detector: On the device, equal on all ranks.
        dataset: The training images.
        place: Folder, device, supervision and tracking.
        seed: Of the samplers and loader processes.
        quantization: Given for quantization-aware training; its ranges must be calibrated.
        resume: A checkpoint of this same training to resume from.
        validate: Evaluate on ``data.val`` as ``evaluation`` says.

    Raises:
        ValueError: The config asks for something that does not exist.
        RuntimeError: A loss is not finite, ranks differ, or a checkpoint cannot be written.
        Stopped: A signal stopped the training; a checkpoint to resume from has been written.
    """
    # One rank may read the data set much more slowly than another that has it in its disk cache.
    wait_for_all_ranks("the beginning of a training")
    supervision, device = place.supervision, place.device
    config = copy.deepcopy(config)
    _refuse_what_does_not_fit(config, quantization)
    counts_epochs = config.runner.type == "EpochBasedRunner"
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
    config.custom_hooks, rule = without_ema_hooks(config.get("custom_hooks"))
    refinery = None if quantization is None else _refinery(detector, quantization, rule)
    if graph is not None:
        _run_on(detector, graph if refinery is None else refinery.network, config, device)
    else:
        _refuse_without_graph(config)
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
    optimizer = _optimizer(config, model, quantization)
    average, companions = _companions(detector, refinery, rule)
    equipment = Equipment(
        graph=None if quantization is None else quantization.graph,
        recipe=None if quantization is None else quantization.recipe,
        average=average,
        companions=companions,
        optimizer_step=step_hook,
        plan=plan,
        supervision=supervision,
        tracker=place.tracker or Tracker(),
        steps_per_epoch=len(loader),
    )
    meta = _meta(config, dataset, seed, place, plan)
    runner = _runner(config, model, optimizer, equipment, place.work_dir, meta)
    _register_hooks(runner, config, quantization, validate)
    interval = config.log_config.interval
    tracking = TrackingHook(interval, by_epoch=runner.counts_epochs, figures=place.figures)
    runner.register_hook(tracking, priority="VERY_LOW")
    if refinery is not None:
        for hook, priority in refinery.hooks:
            runner.register_hook(hook, priority=priority)
    elif average is not None:
        runner.register_hook(QuantEMAHook(average), priority=45)
    check_hooks(runner, detector, dataset, device)
    log_in_time(runner, len(loader))
    if resume is not None:
        new_settings = resume.new_optimizer_settings
        runner.resume_training(resume.content, resume.source, len(loader), new_settings)
        runner.say_if_finished(resume.source)
    elif quantization is None and config.load_from:
        content = on_main_rank(
            lambda: load_checkpoint(local_file(config.load_from), trusted=place.trusted)
        )
        runner.load_weights(content, str(config.load_from))
        if average is not None:
            average.begin_()
    terms = [] if refinery is None else refinery.terms
    with added_losses(detector, terms), supervision.over("the start"):
        runner.run(loaders, [tuple(flow) for flow in config.workflow])
    if refinery is not None and quantization is not None:
        refinery.finish(loaders[0], device)
        # No features are recorded for distillation any more, and no step is compiled.
        config.compile = False
        _run_on(detector, quantization.graph, config, device)
    elif average is not None:
        average.swap_()
        sync_buffers_(detector)
    return unwrap(runner.model)


def _refuse_what_does_not_fit(config: Config, quantization: Quantization | None) -> None:
    if config.runner.type not in RUNNER_OF:
        raise ValueError(f"runner.type is {config.runner.type}; use one of {', '.join(RUNNER_OF)}")
    if config.get("compile") and quantization is not None and quantization.refinements.distill:
        raise ValueError(
            "compile and quant.distill do not go together: the teacher's features are recorded"
            " while the network runs; leave one of them out"
        )


def _refuse_without_graph(config: Config) -> None:
    for setting in ("fp16", "compile"):
        if config.get(setting):
            raise ValueError(f"{setting} needs a detector that can be traced; leave it out")


def _run_on(detector: nn.Module, network: Network, config: Config, device: torch.device) -> None:
    """Make mmdet's methods call ``network``, compiled and under autocast if the config says so.

    A float detector runs on its graph only for one of these two.
    """
    settings = compilation(config, device)
    if settings is not None:
        network = compiled(network, detector, settings)
    if config.get("fp16"):
        run_under_autocast(detector, network, device)
    elif settings is not None or hasattr(detector, CONTAINER):
        attach(detector, network)


def _refinery(
    detector: nn.Module, quantization: Quantization, rule: AverageRule | None
) -> Refinery:
    settings = quantization.refinements
    return Refinery(detector, quantization.graph, quantization.schedule, settings, rule)


def _companions(
    detector: nn.Module, refinery: Refinery | None, rule: AverageRule | None
) -> tuple[WeightAverage | None, Mapping[str, Any]]:
    """Return the average of the weights, and all objects with state in a checkpoint, by name."""
    if refinery is not None:
        return refinery.average, refinery.companions
    if rule is None:
        return None, {}
    average = averaged_by(rule, detector)
    return average, {"average": average}


def _float_graph(detector: nn.Module) -> BoundGraph | None:
    try:
        return BoundGraph(detector, trace_detector(detector))
    except ValueError as error:
        log.info("trained without a graph: %s", error)
        return None


def _leave_out_unused(detector: nn.Module, graph: BoundGraph) -> None:
    """Exclude parameters that the network does not use from training, and log their names."""
    names = parameters_outside(detector, graph.graph)
    for name in names:
        detector.get_parameter(name).requires_grad_(False)
    if names:
        log.info("%d parameters are not used and not trained: %s", len(names), names)


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


def _optimizer(config: Config, model: nn.Module, quantization: Quantization | None) -> Any:
    try:
        optimizer = build_optimizer(model, config.optimizer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"optimizer cannot be built: {explain(error)}") from error
    if quantization is not None:
        factor = quantization.refinements.learned_lr
        learned = regroup_(optimizer, unwrap(model), lr_factor=factor)
        if learned:
            log.info("%d quantizer parameters are learned, at %g times the rate", learned, factor)
    return optimizer


def _meta(
    config: Config, dataset: Any, seed: int, place: Workplace, plan: CheckpointPlan
) -> dict[str, Any]:
    """Return the content of each checkpoint's ``meta``; every rank must call it."""
    agents = collectives.all_gather_objects(torchrun_agent())
    meta = {
        "config": config_text(config),
        "CLASSES": classes_of(dataset, "train"),
        "seed": seed,
        "world_size": collectives.world_size(),
        "exp_name": Path(config.filename or place.work_dir).name,
        "env_info": "\n".join(f"{name}: {value}" for name, value in collect_env().items()),
        "mmdet_version": mmdet.__version__,
        "hook_msgs": {},
        **place.meta,
        "key": place.key,
        "agents": sorted({name for name in agents if name}),
        ATTEMPT: on_main_rank(lambda: next_attempt(plan.folder(place.work_dir))),
    }
    if place.tracker is not None:
        meta["run_id"] = None if place.tracker.run is None else place.tracker.run.id
    return meta


def _runner(
    config: Config,
    model: nn.Module,
    optimizer: Any,
    equipment: Equipment,
    work_dir: Path,
    meta: dict[str, Any],
) -> Any:
    settings = {**config.runner, "type": RUNNER_OF[config.runner.type]}
    defaults = {
        "model": model,
        "optimizer": optimizer,
        "work_dir": str(work_dir),
        "logger": log,
        "meta": meta,
        "equipment": equipment,
    }
    return build_runner(settings, default_args=defaults)


def _scale_learning_rate(config: Config, loader: TrainingLoader) -> None:
    """Scale the learning rate by the images of a step on all ranks, as mmdet's ``auto_scale_lr``.

    Unlike in mmdet, it does not change if a training is resumed on another number of ranks.
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
    runner: Any, config: Config, quantization: Quantization | None, validate: bool
) -> None:
    # Registered as the first hook of its priority, as in mmcv.
    runner.register_hook(CheckpointPlace(runner.plan), priority="NORMAL")
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
    evaluation = {**config.get("evaluation", {}), "by_epoch": runner.counts_epochs}
    runner.register_hook(SyncBuffersHook(), priority="ABOVE_NORMAL")
    runner.register_hook(StragglerHook(config.log_config.interval), priority="VERY_LOW")
    # The last of all hooks, so that the checkpoint includes the changes of all others.
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
