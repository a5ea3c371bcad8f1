"""The stage that trains quantization-aware."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from dq.detector.config.read import training_config
from dq.detector.data.datasets import check_evaluation, dataset_digest, dataset_of
from dq.detector.model.checkpoint_content import load_quantization, recipe_of
from dq.detector.model.graph import quantize_detector
from dq.detector.step.rank_state import seed_everything
from dq.detector.training.checkpoint_plan import checkpoint_folder
from dq.detector.training.train import Quantization, train
from dq.dist.norm.sync_batch_norm import revert_sync_batch_norm
from dq.tracking.record.stage_summary import StageSummary
from launcher.plan import Asked, Plan
from launcher.session import Session
from launcher.stages.beginning import BEGINNING, beginning, compared
from launcher.stages.calibration import calibrate_all
from launcher.stages.conclusion import conclude, read_checkpoint, reusable
from launcher.stages.evidence import figures_of
from launcher.stages.float_detector import float_detector
from launcher.stages.resumption import Begun, kept_meta, resumption
from launcher.stages.synchronized_norms import synchronize_norms
from launcher.stages.tracked import run_id_of, tracked

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
    """Train quantization-aware from a float or calibrated checkpoint and evaluate."""
    folder = place.experiment / "qat"
    content, parent = read_checkpoint(checkpoint, trusted=trusted)
    key = plan.key("qat", place.device.type, parent, sync_bn)
    if reuse and (done := reusable(folder, key)):
        return done
    began = time.monotonic()
    config = training_config(plan.config, plan.settings.training)
    checkpoints = checkpoint_folder(config, folder)
    place.work_dir.hold(checkpoints)
    begins = Begun(
        folder=folder,
        checkpoints=checkpoints,
        key=key,
        settings=plan.training_settings("qat", place.device.type, parent, sync_bn),
        images=partial(dataset_digest, plan.config),
        quantized=True,
        reuse=reuse,
    )
    found = resumption(resume, begins)
    with tracked(
        plan, place, "qat", parent_run=run_id_of(content), parent=parent, resume=found
    ) as tracker:
        seed_everything(plan.seed)
        dataset = dataset_of(config, "train")
        check_evaluation(config)
        detector = float_detector(plan, place, content, checkpoint)
        recipe = plan.settings.recipe
        # A training that goes on has its ranges; else those of a calibrated checkpoint are taken.
        ranges = content if found is None else found.content
        source = str(checkpoint) if found is None else found.source
        stored = recipe_of(ranges)
        if stored is not None and replace(stored, raised=()) == recipe:
            recipe = stored
        else:
            stored = None
        graph = quantize_detector(detector, recipe)
        if stored is not None:
            load_quantization(graph, ranges, source)
            log.info("ranges of %s are used, no calibration needed", source)
        elif found is None:
            recipe = calibrate_all(plan, place, detector, graph)
        else:
            raise ValueError(
                f"{source} was not trained with this config's quant section; resume with the config"
                " it was made with, or begin anew without --resume"
            )
        begun = beginning(plan, place, detector, graph, checkpoint, parent, found)
        synchronize_norms(detector, place, "on" if sync_bn == "auto" else sync_bn)
        figures = figures_of(plan, place, graph)
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
                start=begun.on_val,
            ),
            meta={BEGINNING: dict(begun.metrics), **kept_meta(begins, resume, tracker)},
            resume=found,
            key=key,
            validate=validate,
            supervision=place.supervision(plan.guards),
            tracker=tracker,
            figures=figures,
        )
        revert_sync_batch_norm(detector)
        summary = conclude(
            plan,
            place,
            detector,
            "qat",
            key,
            began,
            graph,
            recipe,
            parent,
            tracker=tracker,
            figures=figures,
        )
        return compared(folder, summary, begun)
