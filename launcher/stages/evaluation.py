"""The stage that evaluates a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dq.detector.data.datasets import dataset_of
from dq.detector.engines.measurement import NOTHING, Keep, detected, measure
from dq.detector.evaluation.results_file import check_format, format_results
from dq.detector.model.stored_detector import stored_detector
from dq.dist.exchange import collectives
from dq.dist.work.on_main_rank import on_main_rank
from dq.sync import check_equal_on_ranks
from dq.tracking.record.stage_summary import StageSummary, write_summary
from launcher.plan import Plan
from launcher.session import Session
from launcher.stage.conclusion import summary_of, track_row
from launcher.stage.evidence import keep_predictions
from launcher.stage.stage import read_checkpoint, stage_of
from launcher.stage.tracked import tracked


def evaluated(
    plan: Plan,
    place: Session,
    checkpoint: Path,
    *,
    as_float: bool,
    trusted: bool,
    keep: Keep = NOTHING,
) -> tuple[StageSummary, str]:
    """Evaluate a checkpoint on ``data.test``: fake-quantized if it is quantized, else in float.

    Args:
        plan: All settings of the command.
        place: The process.
        checkpoint: The file.
        as_float: Evaluate a quantized checkpoint in float.
        trusted: Whether the checkpoint may be unpickled.
        keep: What to write besides the metrics.

    Returns:
        The result, and the tables that mmdet prints of it.
    """
    began = time.monotonic()
    parent = read_checkpoint(checkpoint, trusted=trusted)
    with tracked(replace(stage_of(plan, place, "eval", parent), began=began)) as stage:
        stored = stored_detector(
            plan.config, parent.content, parent.source, place.device, as_float=as_float
        )
        detector, graph = stored.detector, stored.graph
        measurement = measure(plan.config, detector, graph, place.device, keep)
        if collectives.is_main_rank():
            keep_predictions(stage, detector, graph, measurement)
        proof = None if graph is None else check_equal_on_ranks(graph, "in evaluation")
        summary = summary_of(stage, measurement, detector, graph, proof)

        def write() -> None:
            stage.folder.mkdir(parents=True, exist_ok=True)
            write_summary(stage.folder, summary)
            stage.tracker.log("test", 0, track_row(summary))

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
    """Write a checkpoint's results on ``data.test`` in the format of its benchmark, unevaluated.

    Every rank must call it.

    Args:
        plan: All settings of the command.
        place: The process.
        checkpoint: The file.
        settings: Of the format, as ``--eval-options`` gives them.
        as_float: Run a quantized checkpoint in float.
        trusted: Whether the checkpoint may be unpickled.
        keep: What to write besides the results.

    Returns:
        The paths of the files.
    """
    dataset = dataset_of(plan.config, "test", test_mode=True)
    check_format(dataset)
    parent = read_checkpoint(checkpoint, trusted=trusted)
    stored = stored_detector(
        plan.config, parent.content, parent.source, place.device, as_float=as_float
    )
    results, _ = detected(plan.config, stored.detector, stored.graph, place.device, dataset, keep)

    def write() -> list[Path]:
        assert results is not None
        return format_results(dataset, results, place.experiment / "eval" / "formatted", settings)

    return on_main_rank(write)
