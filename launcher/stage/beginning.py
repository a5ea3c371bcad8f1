"""Measure the detector before QAT, so that the result of QAT can be compared with it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from dq.detector.engines.measurement import measure
from dq.detector.evaluation.evaluate import main_metric
from dq.detector.step.rank_state import generators, set_generators
from dq.detector.training.assignment import Resume, Trained
from dq.dist.work.on_main_rank import on_main_rank
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.quantizers.phase import Phase
from dq.quant.quantizers.restore import in_phase
from dq.tracking.record.stage_summary import StageSummary, read_summary, write_summary
from launcher.stage.stage import Stage

log = logging.getLogger(__name__)
BEGINNING = "beginning"
# Keys of a data section that change how images are loaded, not which images.
LOADING = ("samples_per_gpu", "test_mode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """The calibrated detector's metrics before the first step.

    Attributes:
        metrics: On ``data.test``; empty if a resumed training does not know them.
        on_val: The same if ``data.val`` is the same data set, else None.
    """

    metrics: Mapping[str, float]
    on_val: Mapping[str, float] | None


def beginning(
    stage: Stage, detector: nn.Module, graph: QuantizedGraph, resume: Resume | None
) -> Beginning:
    """Evaluate the detector that QAT starts from, unless the calibration stage has just done so.

    Every rank must call it. Random states and the quantizers' phase are kept.

    Args:
        stage: The training.
        detector: Calibrated, on its device.
        graph: The detector's quantized graph.
        resume: The checkpoint that the training resumes from. Its metrics from before the first
            step are used; if it has none, they stay unknown.
    """
    if resume is not None:
        kept = resume.content.get("meta", {}).get(BEGINNING, {})
        return Beginning(metrics=kept, on_val=None)
    config = stage.plan.config
    metrics = on_main_rank(lambda: _just_measured(stage))
    if metrics is None:
        log.info("evaluating the detector before training")
        state = generators()
        with in_phase(graph.quantizers, Phase.FROZEN):
            metrics = measure(config, detector, graph, stage.place.device).metrics
        set_generators(state)
    same = _plain(config.data.get("val")) == _plain(config.data.get("test"))
    return Beginning(metrics=metrics, on_val=metrics if same else None)


def _plain(section: Any) -> Any:
    if not isinstance(section, Mapping):
        return section
    return {k: v for k, v in section.items() if k not in LOADING}


def _just_measured(stage: Stage) -> Mapping[str, float] | None:
    """Return the metrics of the calibration stage if it was run with this same config."""
    parent = stage.parent
    if parent is None:
        return None
    done = read_summary(parent.path.parent)
    if done is None or done.sha256 != parent.sha256 or done.stage != "calibrated":
        return None
    if done.key != stage.plan.key("calibrated", stage.place.device.type, done.parent):
        return None
    return done.metrics or None


def compared(
    stage: Stage, summary: StageSummary, begun: Beginning, trained: Trained
) -> StageSummary:
    """Add the metric before the training to the summary and write it; every rank must call it.

    Args:
        stage: The training.
        summary: Of its result.
        begun: Its start.
        trained: Which checkpoint became its result.
    """
    start = begun.metrics.get(summary.metric)
    if start is None and begun.metrics:
        start = main_metric(begun.metrics)[1]
    found = replace(summary, start=start, chosen=trained.best, last_drop=trained.last_drop)
    on_main_rank(lambda: write_summary(stage.folder, found))
    return found
