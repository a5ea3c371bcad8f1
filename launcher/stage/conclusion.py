"""Finish a stage: write its checkpoint, evaluate it, write its summary."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from dq.detector.config.config_text import config_text
from dq.detector.data.datasets import test_classes
from dq.detector.data.loader_options import images_per_step
from dq.detector.engines.measurement import Measurement, measure
from dq.detector.evaluation.evaluate import main_metric
from dq.detector.hooks.tracking import Figures
from dq.detector.model.checkpoint_content import compose
from dq.dist.exchange import collectives
from dq.dist.files.checkpoint import save_checkpoint
from dq.dist.work.on_main_rank import on_main_rank
from dq.quant.analysis.statistics import model_bytes
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe
from dq.sync import check_equal_on_ranks
from dq.tracking.record.stage_summary import StageSummary, sha256_of, write_summary
from launcher.stage.evidence import keep_matches, keep_predictions
from launcher.stage.stage import Stage

log = logging.getLogger(__name__)
# Entry of a checkpoint's `meta`.
IMAGES_PER_STEP = "images_per_step"


def track_row(summary: StageSummary) -> dict[str, Any]:
    """Return the row of values that a tracker records of a stage's result."""
    row: dict[str, Any] = {**summary.metrics, "images_per_s": summary.images_per_s or 0.0}
    row |= {f"class/{name}": value for name, value in summary.classes.items()}
    if summary.model_bytes is not None:
        row["model_bytes"] = summary.model_bytes
    row["seconds"] = summary.seconds
    if summary.range_digest is not None:
        row["digest"] = summary.range_digest
    return row


def summary_of(
    stage: Stage,
    measurement: Measurement,
    detector: nn.Module,
    graph: QuantizedGraph | None,
    proof: str | None,
) -> StageSummary:
    """Return the summary of a stage, without a checkpoint.

    Args:
        stage: The stage that is about to end.
        measurement: The evaluation of its detector.
        detector: The detector, not wrapped by DDP.
        graph: The detector's quantized graph, if it is quantized.
        proof: Digest of the ranges, equal on all ranks.
    """
    name, value = main_metric(measurement.metrics)
    return StageSummary(
        stage=stage.name,
        key=stage.key,
        metric=name,
        value=value,
        metrics=measurement.metrics,
        parent=stage.parent_sha256,
        range_digest=proof,
        world_size=collectives.world_size(),
        seconds=round(time.monotonic() - stage.began, 1),
        num_quantizers=0 if graph is None else len(graph.sites),
        run_id=None if stage.tracker.run is None else stage.tracker.run.id,
        parent_run=None if stage.parent is None else stage.parent.run_id,
        bits="float32" if graph is None else stage.plan.bits,
        model_bytes=model_bytes(detector, graph),
        images_per_s=measurement.images_per_s,
        classes=measurement.classes,
        finished=time.time(),
    )


def conclude(
    stage: Stage,
    detector: nn.Module,
    graph: QuantizedGraph | None = None,
    recipe: Recipe | None = None,
    figures: Figures | None = None,
    originals: Mapping[str, Tensor] = MappingProxyType({}),
) -> StageSummary:
    """Write a stage's checkpoint, evaluate its detector, write its summary.

    Every rank must call it.

    Args:
        stage: With its tracker.
        detector: The detector, not wrapped by DDP.
        graph: The detector's quantized graph, if it is quantized.
        recipe: The recipe that the graph was prepared with.
        figures: Measures the quantizers, here for the last time.
        originals: See `dq.quant.ptq.repairs.Calibration.originals`.
    """
    tracker, steps = stage.tracker, stage.tracker.last_step
    proof = None
    if graph is not None:
        set_phase(graph.quantizers, Phase.FROZEN)
        proof = check_equal_on_ranks(graph, f"at the end of {stage.name}")
    content = _content(stage, detector, graph, recipe, originals)
    on_main_rank(lambda: save_checkpoint(stage.checkpoint, content))
    log.info("checkpoint %s", stage.checkpoint)
    stage.place.signals.raise_if_stopped()
    measurement = _measured(stage, detector, graph)
    if collectives.is_main_rank():
        keep_matches(stage, measurement)
        keep_predictions(stage, detector, graph, measurement)
        if figures is not None:
            when = "end" if steps else "calibration"
            tracker.table(steps, 0, when, figures.measure(detector))

    def summarize() -> StageSummary:
        path = stage.checkpoint
        summary = replace(
            summary_of(stage, measurement, detector, graph, proof),
            checkpoint=path.name,
            sha256=sha256_of(path),
        )
        write_summary(stage.folder, summary)
        tracker.log("test", steps, track_row(summary))
        tracker.log("checkpoint", steps, {"file": path.name, "sha256": summary.sha256})
        return summary

    return on_main_rank(summarize)


def _content(
    stage: Stage,
    detector: nn.Module,
    graph: QuantizedGraph | None,
    recipe: Recipe | None,
    originals: Mapping[str, Tensor],
) -> dict[str, Any]:
    config, run = stage.plan.config, stage.tracker.run
    meta: dict[str, Any] = {
        "CLASSES": tuple(getattr(detector, "CLASSES", None) or test_classes(config)),
        "config": config_text(config),
        "stage": stage.name,
        "key": stage.key,
        "run_id": None if run is None else run.id,
    }
    if (images := _images_per_step(stage)) is not None:
        meta[IMAGES_PER_STEP] = images
    return compose(detector, graph=graph, recipe=recipe, meta=meta, originals=originals)


def _images_per_step(stage: Stage) -> int | None:
    """Return the images of a step of the float training, for recipes; None if unknown."""
    if stage.name == "float":
        return images_per_step(stage.plan.config)
    content = {} if stage.parent is None else stage.parent.content
    found: int | None = content.get("meta", {}).get(IMAGES_PER_STEP)
    return found


def _measured(stage: Stage, detector: nn.Module, graph: QuantizedGraph | None) -> Measurement:
    """Evaluate the detector; if that fails, the error also says that the checkpoint is written."""
    try:
        return measure(stage.plan.config, detector, graph, stage.place.device)
    except (ValueError, RuntimeError) as error:
        if type(error) not in (ValueError, RuntimeError):
            raise
        path = stage.checkpoint
        raise type(error)(
            f"{error}; {path} is written: when that is fixed, evaluate it with `launcher eval`, or"
            f" start the next stage with --checkpoint {path}"
        ) from error
