"""The four stages: train in float, calibrate, train quantized, evaluate."""

from __future__ import annotations

import argparse
import copy
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dq.detector.build import build_model, float_state, load_float_state
from dq.detector.calibrate import calibrate_and_repair, first_images
from dq.detector.checkpoint import compose, load_quantization, recipe_of
from dq.detector.config import apply_options, finish, read_config
from dq.detector.data import (
    calibration_dataset,
    calibration_images,
    dataset_of,
    seed_everything,
    test_classes,
)
from dq.detector.evaluate import evaluate, main_metric
from dq.detector.graph import quantize_detector
from dq.detector.loop import Quantization, train
from dq.dist import collectives
from dq.dist.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from dq.dist.one_rank import run_on_rank
from dq.dist.sync_batch_norm import convert_sync_batch_norm, revert_sync_batch_norm
from dq.quant.phase import Phase, set_phase
from dq.quant.quantized_graph import QuantizedGraph
from dq.quant.recipe import Recipe
from dq.quant.repair import Mixed
from dq.quant.sensitivity import analyze, raise_bits_
from dq.sync import calibrate_on_one_rank, prove_equal
from dq.tracking.summary import StageSummary, is_current, key_of, sha256_of, write_summary
from launcher.config import QuantSettings, quant_settings
from launcher.session import Session

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done, read and checked before anything is started.

    Attributes:
        config: mmdet's config, complete.
        settings: Its quantization.
        text: The config without its quantization as it was read; libraries change what they are
            handed, so it is kept.
        seed: Of everything random, equal on all ranks.
    """

    config: Any
    settings: QuantSettings
    text: str
    seed: int


def read_plan(arguments: argparse.Namespace) -> Plan:
    """Read the command's config; raise ValueError for whatever is mistyped in it."""
    from launcher.config import command_for

    config = finish(read_config(arguments.config, arguments.cfg_options))
    command_for(config.get("quantize", False))
    settings = quant_settings(config.get("quant"))
    # Overrides that do not fit should fail now and not after an hour of float training.
    apply_options(copy.deepcopy(config), settings.training)
    text = str({k: v for k, v in config.items() if k not in ("quant", "quantize")})
    seed = arguments.seed if arguments.seed is not None else config.get("seed") or 0
    return Plan(config=config, settings=settings, text=text, seed=int(seed))


def train_float(
    plan: Plan, place: Session, *, resume: str | None, sync_bn: str, validate: bool, reuse: bool
) -> StageSummary:
    """Train the float detector and evaluate it on ``data.test``."""
    folder = place.experiment / "float"
    key = _key(plan, place, "float", None, sync_bn)
    if reuse and (done := _reusable(folder, key)):
        return done
    began = time.monotonic()
    seed_everything(plan.seed)
    dataset = dataset_of(plan.config, "train")
    detector = build_model(plan.config, tuple(dataset.CLASSES), initialise=True).to(place.device)
    if sync_bn == "on":
        convert_sync_batch_norm(detector)
    detector = train(
        plan.config,
        detector,
        dataset,
        work_dir=folder,
        device=place.device,
        seed=plan.seed,
        resume_from=_resume_path(resume, folder, key if reuse else None),
        key=key,
        validate=validate,
    )
    revert_sync_batch_norm(detector)
    return _conclude(plan, place, detector, "float", key, began)


def calibrated(
    plan: Plan, place: Session, checkpoint: Path, *, trusted: bool, reuse: bool
) -> StageSummary:
    """Calibrate a float checkpoint on one rank, give all ranks its ranges, evaluate."""
    folder = place.experiment / "calibrated"
    content = load_checkpoint(checkpoint, trusted=trusted)
    key = _key(plan, place, "calibrated", sha256_of(checkpoint))
    if reuse and (done := _reusable(folder, key)):
        return done
    began = time.monotonic()
    seed_everything(plan.seed)
    detector = _float_detector(plan, content, str(checkpoint)).to(place.device)
    graph = quantize_detector(detector, plan.settings.recipe)
    recipe = _calibrate(plan, place, detector, graph)
    return _conclude(plan, place, detector, "calibrated", key, began, graph, recipe, checkpoint)


def train_quantized(
    plan: Plan,
    place: Session,
    checkpoint: Path,
    *,
    resume: str | None,
    sync_bn: str,
    validate: bool,
    trusted: bool,
    reuse: bool,
) -> StageSummary:
    """Train quantization-aware from a float or calibrated checkpoint and evaluate."""
    folder = place.experiment / "qat"
    content = load_checkpoint(checkpoint, trusted=trusted)
    key = _key(plan, place, "qat", sha256_of(checkpoint), sync_bn)
    if reuse and (done := _reusable(folder, key)):
        return done
    began = time.monotonic()
    seed_everything(plan.seed)
    config = copy.deepcopy(plan.config)
    apply_options(config, plan.settings.training)
    dataset = dataset_of(config, "train")
    detector = _float_detector(plan, content, str(checkpoint)).to(place.device)
    recipe = plan.settings.recipe
    stored = recipe_of(content)
    calibrated_so = stored is not None and replace(stored, raised=()) == recipe
    if stored is not None and calibrated_so:
        recipe = stored
    graph = quantize_detector(detector, recipe)
    if calibrated_so:
        load_quantization(graph, content, str(checkpoint))
        log.info("ranges of %s are used, no calibration needed", checkpoint)
    elif resume is None:
        recipe = _calibrate(plan, place, detector, graph)
    if sync_bn == "on" or (sync_bn == "auto" and collectives.world_size() > 1):
        convert_sync_batch_norm(detector)
    detector = train(
        config,
        detector,
        dataset,
        work_dir=folder,
        device=place.device,
        seed=plan.seed,
        quantization=Quantization(
            graph=graph,
            recipe=recipe,
            schedule=plan.settings.schedule,
            refinements=plan.settings.refinements,
        ),
        resume_from=_resume_path(resume, folder, key if reuse else None),
        key=key,
        validate=validate,
    )
    revert_sync_batch_norm(detector)
    return _conclude(plan, place, detector, "qat", key, began, graph, recipe, checkpoint)


def evaluated(
    plan: Plan, place: Session, checkpoint: Path, *, as_float: bool, trusted: bool
) -> StageSummary:
    """Evaluate a checkpoint on ``data.test``: rounded where it is quantized, else in float."""
    began = time.monotonic()
    content = load_checkpoint(checkpoint, trusted=trusted)
    detector = _float_detector(plan, content, str(checkpoint)).to(place.device)
    recipe = None if as_float else recipe_of(content)
    graph = None
    if recipe is not None:
        graph = quantize_detector(detector, recipe)
        load_quantization(graph, content, str(checkpoint))
        set_phase(graph.quantizers, Phase.FROZEN)
    metrics = _evaluate(plan, place, detector)
    name, value = main_metric(metrics)
    summary = StageSummary(
        stage="eval",
        key=_key(plan, place, "eval", sha256_of(checkpoint)),
        metric=name,
        value=value,
        metrics=metrics,
        parent=sha256_of(checkpoint),
        range_digest=None if graph is None else prove_equal(graph, "in evaluation"),
        world_size=collectives.world_size(),
        seconds=round(time.monotonic() - began, 1),
        num_quantizers=0 if graph is None else len(graph.sites),
    )
    if collectives.is_main_rank():
        folder = place.experiment / "eval"
        folder.mkdir(parents=True, exist_ok=True)
        write_summary(folder, summary)
    return summary


def analyzed(
    plan: Plan, place: Session, checkpoint: Path, *, mixed: Mixed, trusted: bool
) -> dict[str, Any] | None:
    """Measure each quantizer's effect on the outputs; one rank works, the others wait.

    Returns:
        On the main rank what `dq.tracking.sensitivity.sensitivity_table` takes, elsewhere None.
    """
    content = load_checkpoint(checkpoint, trusted=trusted)
    seed_everything(plan.seed)
    detector = _float_detector(plan, content, str(checkpoint)).to(place.device)
    stored = recipe_of(content)
    graph = quantize_detector(detector, stored or plan.settings.recipe)

    def work() -> dict[str, Any]:
        batches = calibration_batches(plan, plan.seed)
        if stored is not None:
            load_quantization(graph, content, str(checkpoint))
            detector.eval()
        else:
            repair = replace(plan.settings.repair, mixed=None)
            kept = list(batches)
            calibrate_and_repair(
                detector,
                graph,
                kept,
                place.device,
                weight_range=plan.settings.recipe.weight_range,
                repair=repair,
            )
            batches = iter(kept)
        images = [b.to(place.device) for b in first_images(batches, mixed.images)]
        return analyze(graph, images, mixed)

    return run_on_rank(work)


def _float_detector(plan: Plan, content: Mapping[str, Any], source: str) -> nn.Module:
    """Return the detector of the config with a checkpoint's float weights."""
    classes = test_classes(plan.config)
    detector = build_model(plan.config, classes, initialise=False)
    load_float_state(detector, float_state(content, source), source)
    return detector


def _calibrate(plan: Plan, place: Session, detector: nn.Module, graph: QuantizedGraph) -> Recipe:
    """Calibrate and repair on one rank; return the recipe with what mixed precision raised."""
    raised: list[str] = []

    def work() -> None:
        found = calibrate_and_repair(
            detector,
            graph,
            calibration_batches(plan, plan.seed),
            place.device,
            weight_range=plan.settings.recipe.weight_range,
            repair=plan.settings.repair,
        )
        raised.extend(found)

    proof = calibrate_on_one_rank(graph, work)
    names: list[str] = collectives.broadcast_object(raised)
    if not raised:  # on the ranks that did not calibrate
        raise_bits_(graph, names)
    set_phase(graph.quantizers, Phase.FROZEN)
    log.info("all %d ranks have the same ranges, digest %s", collectives.world_size(), proof[:16])
    return replace(plan.settings.recipe, raised=tuple(names))


def calibration_batches(plan: Plan, seed: int) -> Iterator[Tensor]:
    """Yield the batches of images that calibration looks at, on the CPU."""
    schedule = plan.settings.schedule
    return calibration_images(
        calibration_dataset(plan.config),
        num_images=schedule.calibration_batches * schedule.calibration_batch_size,
        batch_size=schedule.calibration_batch_size,
        seed=seed,
    )


def _evaluate(plan: Plan, place: Session, detector: nn.Module) -> dict[str, float]:
    dataset = dataset_of(plan.config, "test", test_mode=True)
    workers = plan.config.data.get("test_dataloader", {}).get("workers_per_gpu", 1)
    metrics = evaluate(
        detector, dataset, plan.config.get("evaluation", {}), device=place.device, workers=workers
    )
    name, value = main_metric(metrics)
    log.info("%s on %d images: %.2f %%", name, len(dataset), 100 * value)
    return metrics


def _conclude(
    plan: Plan,
    place: Session,
    detector: nn.Module,
    stage: str,
    key: str,
    began: float,
    graph: QuantizedGraph | None = None,
    recipe: Recipe | None = None,
    parent: Path | None = None,
) -> StageSummary:
    """Evaluate a stage's detector, write its checkpoint and its summary."""
    if graph is not None:
        set_phase(graph.quantizers, Phase.FROZEN)
    folder = place.experiment / stage
    path = folder / f"{stage}.pth"
    classes = test_classes(plan.config)
    if collectives.is_main_rank():
        meta = {"CLASSES": classes, "config": plan.config.pretty_text, "stage": stage}
        save_checkpoint(path, compose(detector, graph=graph, recipe=recipe, meta=meta))
    metrics = _evaluate(plan, place, detector)
    name, value = main_metric(metrics)
    summary = None
    if collectives.is_main_rank():
        summary = StageSummary(
            stage=stage,
            key=key,
            metric=name,
            value=value,
            metrics=metrics,
            checkpoint=path.name,
            sha256=sha256_of(path),
            parent=None if parent is None else sha256_of(parent),
            world_size=collectives.world_size(),
            seconds=round(time.monotonic() - began, 1),
            num_quantizers=0 if graph is None else len(graph.sites),
        )
        write_summary(folder, summary)
    shared: StageSummary = collectives.broadcast_object(summary)
    return shared


def _reusable(folder: Path, key: str) -> StageSummary | None:
    """Return the stage's summary on all ranks when the main rank finds it current."""
    found = is_current(folder, key) if collectives.is_main_rank() else None
    done: StageSummary | None = collectives.broadcast_object(found)
    if done is not None:
        log.info("%s is done already: %s %.2f %%", folder, done.metric, 100 * done.value)
    return done


def _key(plan: Plan, place: Session, stage: str, parent: str | None, *more: object) -> str:
    # The quantization section does not change what float training does.
    quantized = () if stage == "float" else (plan.settings,)
    return key_of(
        stage,
        plan.text,
        plan.seed,
        collectives.world_size(),
        place.device.type,
        parent,
        torch.__version__,
        *quantized,
        *more,
    )


def _resume_path(resume: str | None, folder: Path, key: str | None) -> Path | None:
    """Return the checkpoint to continue from, None to begin anew.

    Args:
        resume: None, ``auto`` or a file.
        folder: Of the stage.
        key: What the newest checkpoint must have been made with; None takes any, for a user who
            changes a training on purpose, to make it longer say.
    """
    if resume is None:
        return None
    if resume != "auto":
        return Path(resume)
    found = None
    if collectives.is_main_rank():
        found = latest_checkpoint(folder, "*_[0-9]*.pth")
        if found is None:
            log.info("no checkpoint in %s, beginning anew", folder)
        elif key is not None and load_checkpoint(found)["meta"].get("key") != key:
            log.info("%s is of another config, beginning anew", found)
            found = None
    path: Path | None = collectives.broadcast_object(found)
    return path
