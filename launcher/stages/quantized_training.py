"""The stage of quantization-aware training (QAT)."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from dq.detector.config.read import training_config
from dq.detector.data.datasets import check_evaluation, dataset_of
from dq.detector.model.checkpoint_content import originals_of, recipe_of
from dq.detector.model.graph import quantize_detector
from dq.detector.model.stored_detector import float_detector, quantize_as_stored
from dq.detector.step.rank_state import seed_everything
from dq.detector.training.assignment import Quantization, Resume
from dq.detector.training.train import train
from dq.dist.norm.sync_batch_norm import revert_sync_batch_norm
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.tracking.record.stage_summary import StageSummary
from launcher.plan import Asked, Plan
from launcher.session import Session
from launcher.stage.beginning import BEGINNING, beginning, compared
from launcher.stage.conclusion import conclude
from launcher.stage.evidence import figures_of
from launcher.stage.resumption import begun, kept_meta, resumption
from launcher.stage.stage import Parent, Stage, read_checkpoint, reusable, stage_of
from launcher.stage.synchronized_norms import synchronize_norms
from launcher.stage.tracked import tracked
from launcher.stage.workplace import workplace
from launcher.stages.calibration import Calibrated, calibrate_all
from launcher.stages.training_recipe import chosen, say_doubts

log = logging.getLogger(__name__)


def train_quantized(
    plan: Plan,
    place: Session,
    checkpoint: Path,
    *,
    resume: Asked,
    sync_bn: str,
    validate: bool,
    trusted: bool,
    reuse: bool,
) -> StageSummary:
    """Train quantization-aware from a float or calibrated checkpoint and evaluate.

    Args:
        plan: All settings of the command.
        place: The process.
        checkpoint: The float or calibrated checkpoint.
        resume: The checkpoint that the user wants to resume from.
        sync_bn: ``auto``, ``on``, ``node`` or ``off``, as ``--sync-bn`` says.
        validate: Whether to evaluate on ``data.val`` during the training.
        trusted: Whether ``checkpoint`` may be unpickled.
        reuse: Whether a finished stage with the same settings is used instead.
    """
    parent = read_checkpoint(checkpoint, trusted=trusted)
    begins = stage_of(plan, place, "qat", parent, sync_bn)
    if reuse and (done := reusable(begins)):
        return done
    config = training_config(plan.config, plan.settings.training)
    training = begun(begins, config, sync_bn=sync_bn, reuse=reuse)
    found = resumption(resume, training)
    with tracked(begins, found) as stage:
        seed_everything(plan.seed)
        dataset = dataset_of(config, "train")
        check_evaluation(config)
        detector = float_detector(plan.config, parent.content, parent.source, place.device)
        settings = chosen(plan, detector, dataset, parent, found)
        say_doubts(plan, settings.config, dataset, parent)
        graph, made = _quantized(stage, detector, parent, found)
        start = beginning(stage, detector, graph, found)
        synchronize_norms(detector, place, "on" if sync_bn == "auto" else sync_bn)
        figures = figures_of(stage, graph)
        meta = {BEGINNING: dict(start.metrics), **kept_meta(training, resume, stage.tracker)}
        trained = train(
            settings.config,
            detector,
            dataset,
            workplace(stage, meta=meta | settings.meta, figures=figures),
            seed=plan.seed,
            task=Quantization(
                graph=graph,
                recipe=made.recipe,
                schedule=settings.schedule,
                refinements=settings.refinements,
                start=start.on_val,
                most_update=settings.most_update,
                originals=made.originals,
            ),
            resume=found,
            validate=validate,
        )
        revert_sync_batch_norm(trained.detector)
        summary = conclude(stage, trained.detector, graph, made.recipe, figures)
        return compared(stage, summary, start, trained)


def _quantized(
    stage: Stage, detector: nn.Module, parent: Parent, resume: Resume | None
) -> tuple[QuantizedGraph, Calibrated]:
    """Return the detector's graph with ranges, and what calibration changed.

    Every rank must call it.

    The ranges are read from the checkpoint to resume from, else from a calibrated checkpoint. A
    float checkpoint is calibrated here.

    Raises:
        ValueError: The checkpoint to resume from was quantized in another way.
    """
    recipe = stage.plan.settings.recipe
    ranges = parent.content if resume is None else resume.content
    source = parent.source if resume is None else resume.source
    stored = recipe_of(ranges)
    if stored is not None and recipe.fits_stored(stored):
        graph = quantize_as_stored(detector, stored, ranges, source)
        log.info("ranges of %s are used, no calibration needed", source)
        originals = originals_of(graph, ranges, source)
        return graph, Calibrated(recipe=stored, originals=originals)
    if resume is not None:
        raise ValueError(
            f"{source} was not trained with this config's quant section; resume with the config"
            " it was made with, or start a new training without --resume"
        )
    graph = quantize_detector(detector, recipe)
    return graph, calibrate_all(stage, detector, graph)
