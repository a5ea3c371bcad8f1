"""Train a detector with mmcv's runner: build what the config asks for, register hooks, run."""

from __future__ import annotations

import copy
import logging
from typing import Any

from mmcv import Config
from torch import nn

from dq.detector.config.addresses import local_file
from dq.detector.data.datasets import validation_loss_dataset
from dq.detector.loading.training_loader import TrainingLoader, training_loader
from dq.detector.refinements.extras import Extras
from dq.detector.step.optimizer_config import optimizer_step
from dq.detector.step.optimizer_step import OptimizerStep
from dq.detector.training.assembly import meta_of, optimizer_of, runner_of, scale_learning_rate
from dq.detector.training.assignment import Continued, Quantization, Resume, Trained, Workplace
from dq.detector.training.best import last_drop, take_best_
from dq.detector.training.checkpoint_plan import CheckpointPlan, checkpoint_plan
from dq.detector.training.exact_runner import Equipment
from dq.detector.training.hook_checks import check_hooks, log_in_time
from dq.detector.training.layer_rates import LAYER_RATES, layer_rates_
from dq.detector.training.network import network_to_train, on_all_ranks, run_on
from dq.detector.training.registered_hooks import register_hooks
from dq.detector.training.runners import RUNNER_OF
from dq.dist.exchange.data_parallel import unwrap
from dq.dist.files.checkpoint import load_checkpoint
from dq.dist.work.all_here import wait_for_all_ranks
from dq.dist.work.on_main_rank import on_main_rank
from dq.tracking.tracker import Tracker

log = logging.getLogger("dq.train")


def train(
    config: Config,
    detector: nn.Module,
    dataset: Any,
    place: Workplace,
    *,
    seed: int,
    task: Quantization | Continued | None = None,
    resume: Resume | None = None,
    validate: bool = True,
) -> Trained:
    """Train as the config says; every rank must call it.

    The result of a quantized training is its best checkpoint by evaluation, which may be its start.

    Hooks, learning rates, clipping, evaluation and checkpoints are those of mmcv and mmdet,
    configured as for mmdet's ``tools/train.py``.

    Args:
        config: Result of `dq.detector.config.read.finish`; it is not changed.
        detector: On the device, equal on all ranks.
        dataset: The training images.
        place: Folder, device, supervision and tracking.
        seed: Of the samplers and loader processes.
        task: A quantized training, whose ranges must be calibrated, or a float detector that is
            trained further, as a control; None for a float training.
        resume: A checkpoint of this same training to resume from.
        validate: Evaluate on ``data.val`` as ``evaluation`` says.

    Raises:
        ValueError: The config asks for something that does not exist.
        RuntimeError: A loss is not finite, ranks differ, or a checkpoint cannot be written.
        Stopped: A signal stopped the training; a checkpoint to resume from has been written.
    """
    # One rank may read the data set much more slowly than another that has it in its disk cache.
    wait_for_all_ranks("the beginning of a training")
    config = copy.deepcopy(config)
    quantization = task if isinstance(task, Quantization) else None
    continued = task if isinstance(task, Continued) else None
    _refuse_what_does_not_fit(config, quantization)
    counts_epochs = config.runner.type == "EpochBasedRunner"
    plan = checkpoint_plan(config.checkpoint_config, counts_epochs=counts_epochs)
    step_hook = optimizer_step(config, place.supervision, place.device)
    loader = training_loader(
        config,
        dataset,
        seed=seed,
        chunks_per_step=None if resume is None else resume.chunks_per_step,
        max_bad=place.supervision.guards.max_bad_images,
    )
    loaders = _loaders(config, loader, seed)
    extras = network_to_train(config, detector, quantization, place.device, continued)
    model = on_all_ranks(config, detector, place.device)
    scale_learning_rate(config, loader)
    optimizer = optimizer_of(config, model, quantization)
    factors = {}
    if task is not None:
        guards, limit = place.supervision.guards, task.most_update
        with extras.losses():
            factors = layer_rates_(config, model, optimizer, loader, limit, guards, resume)
    equipment = _equipment(quantization, extras, step_hook, plan, place, len(loader))
    meta = meta_of(config, dataset, seed, place, plan) | {LAYER_RATES: factors}
    runner = runner_of(config, model, optimizer, equipment, place.work_dir, meta)
    register_hooks(
        runner,
        config,
        extras,
        quantization=quantization,
        continued=continued,
        figures=place.figures,
        validate=validate,
    )
    check_hooks(runner, detector, dataset, place.device)
    log_in_time(runner, len(loader))
    _set_begin(runner, config, len(loader), resume, trusted=place.trusted)
    _note_length(runner, len(loader))
    with extras.losses(), place.supervision.over("the start"):
        runner.run(loaders, [tuple(flow) for flow in config.workflow])
    extras.finish(loaders[0], place.device)
    if quantization is not None:
        # Nothing is to be recorded for a loss any more, and no step compiled.
        config.compile = False
        run_on(detector, quantization.graph, config, place.device)
        best = take_best_(runner, detector, quantization)
        return Trained(detector=detector, best=best, last_drop=last_drop(runner))
    return Trained(detector=unwrap(runner.model))


def _equipment(
    quantization: Quantization | None,
    extras: Extras,
    step_hook: OptimizerStep | None,
    plan: CheckpointPlan,
    place: Workplace,
    steps_per_epoch: int,
) -> Equipment:
    return Equipment(
        graph=None if quantization is None else quantization.graph,
        recipe=None if quantization is None else quantization.recipe,
        average=extras.average,
        companions=extras.companions,
        optimizer_step=step_hook,
        plan=plan,
        supervision=place.supervision,
        tracker=place.tracker or Tracker(),
        steps_per_epoch=steps_per_epoch,
    )


def _set_begin(
    runner: Any, config: Config, steps_per_epoch: int, resume: Resume | None, *, trusted: bool
) -> None:
    """Load what the training continues from, or the weights that a float training begins with."""
    if resume is not None:
        new_settings = resume.new_optimizer_settings
        runner.resume_training(resume.content, resume.source, steps_per_epoch, new_settings)
        runner.say_if_finished(resume.source)
    elif runner.graph is None and config.load_from:
        content = on_main_rank(
            lambda: load_checkpoint(local_file(config.load_from), trusted=trusted)
        )
        runner.load_weights(content, str(config.load_from))
        if runner.average is not None:
            runner.average.begin_()


def _note_length(runner: Any, steps_per_epoch: int) -> None:
    """Record how long the training will be, so that a reader can say when it ends."""
    epochs = runner.max_epochs if runner.counts_epochs else None
    steps = runner.max_iters if epochs is None else epochs * steps_per_epoch
    runner.tracker.begin_training(int(runner.iter), int(steps))


def _refuse_what_does_not_fit(config: Config, quantization: Quantization | None) -> None:
    if config.runner.type not in RUNNER_OF:
        raise ValueError(f"runner.type is {config.runner.type}; use one of {', '.join(RUNNER_OF)}")
    if config.get("compile") and quantization is not None and quantization.refinements.distill:
        raise ValueError(
            "compile and quant.distill do not go together: the teacher's features are recorded"
            " while the network runs; leave one of them out"
        )


def _loaders(config: Config, loader: TrainingLoader, seed: int) -> list[TrainingLoader]:
    """Return a loader for each part of the workflow; ``('val', 1)`` computes validation losses."""
    modes = [mode for mode, _ in config.workflow]
    if modes.count("train") != 1 or modes.count("val") != len(modes) - 1 or len(modes) > 2:
        raise ValueError(
            f"workflow is {config.workflow}; use [('train', 1)] or [('train', 1), ('val', 1)]"
        )
    max_bad = loader.max_bad_images
    return [
        loader
        if mode == "train"
        else training_loader(config, validation_loss_dataset(config), seed=seed, max_bad=max_bad)
        for mode in modes
    ]
