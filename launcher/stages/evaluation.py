"""The stage that evaluates a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dq.detector.data.datasets import dataset_of
from dq.detector.evaluation.evaluate import main_metric
from dq.detector.evaluation.results_file import check_format, format_results
from dq.detector.model.checkpoint_content import load_quantization, recipe_of
from dq.detector.model.graph import quantize_detector
from dq.dist.exchange import collectives
from dq.dist.work.on_main_rank import on_main_rank
from dq.quant.analysis.statistics import model_bytes
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.quantizers.phase import Phase, set_phase
from dq.sync import check_equal_on_ranks
from dq.tracking.record.stage_summary import StageSummary, write_summary
from launcher.plan import Plan
from launcher.session import Session
from launcher.stages.conclusion import NOTHING, Keep, detected, measure, read_checkpoint, track_row
from launcher.stages.evidence import keep_predictions
from launcher.stages.float_detector import float_detector
from launcher.stages.tracked import run_id_of, tracked


def evaluated(
    plan: Plan,
    place: Session,
    checkpoint: Path,
    *,
    as_float: bool,
    trusted: bool,
    keep: Keep = NOTHING,
) -> tuple[StageSummary, str]:
    """Evaluate a checkpoint on ``data.test``: rounded where it is quantized, else in float.

    Returns:
        The result, and the tables that mmdet prints of it.
    """
    began = time.monotonic()
    content, parent = read_checkpoint(checkpoint, trusted=trusted)
    with tracked(plan, place, "eval", parent_run=run_id_of(content), parent=parent) as tracker:
        detector, graph = _detector(plan, place, content, checkpoint, as_float=as_float)
        measurement = measure(plan, place, detector, graph, keep)
        metrics = measurement.metrics
        name, value = main_metric(metrics)
        if collectives.is_main_rank():
            folder = place.experiment / "eval"
            dataset, results = measurement.dataset, measurement.results
            keep_predictions(plan, place, tracker, folder, detector, graph, dataset, results, 0)
        summary = StageSummary(
            stage="eval",
            key=plan.key("eval", place.device.type, parent),
            metric=name,
            value=value,
            metrics=metrics,
            parent=parent,
            range_digest=None if graph is None else check_equal_on_ranks(graph, "in evaluation"),
            world_size=collectives.world_size(),
            seconds=round(time.monotonic() - began, 1),
            num_quantizers=0 if graph is None else len(graph.sites),
            run_id=None if tracker.run is None else tracker.run.id,
            parent_run=run_id_of(content),
            bits="float32" if graph is None else plan.bits,
            model_bytes=model_bytes(detector, graph),
            images_per_s=measurement.images_per_s,
            classes=measurement.classes,
            finished=time.time(),
        )

        def write() -> None:
            folder = place.experiment / "eval"
            folder.mkdir(parents=True, exist_ok=True)
            write_summary(folder, summary)
            tracker.log("test", 0, track_row(summary))

        on_main_rank(write)
        return summary, measurement.tables


def formatted(
    plan: Plan,
    place: Session,
    checkpoint: Path,
    settings: Mapping[str, Any],
    *,
    as_float: bool,
    trusted: bool,
    keep: Keep,
) -> list[Path]:
    """Write a checkpoint's results on ``data.test`` as its benchmark takes them, unevaluated.

    Every rank must call it.

    Returns:
        The files.
    """
    dataset = dataset_of(plan.config, "test", test_mode=True)
    check_format(dataset)
    content, _ = read_checkpoint(checkpoint, trusted=trusted)
    detector, graph = _detector(plan, place, content, checkpoint, as_float=as_float)
    results, _ = detected(plan, place, detector, graph, dataset, keep)

    def write() -> list[Path]:
        assert results is not None
        return format_results(dataset, results, place.experiment / "eval" / "formatted", settings)

    return on_main_rank(write)


def _detector(
    plan: Plan, place: Session, content: Mapping[str, Any], checkpoint: Path, *, as_float: bool
) -> tuple[nn.Module, QuantizedGraph | None]:
    """Return a checkpoint's detector, and its graph with frozen ranges where it is quantized."""
    detector = float_detector(plan, place, content, checkpoint)
    recipe = None if as_float else recipe_of(content)
    if recipe is None:
        return detector, None
    graph = quantize_detector(detector, recipe)
    load_quantization(graph, content, str(checkpoint))
    set_phase(graph.quantizers, Phase.FROZEN)
    return detector, graph
