"""What a quantized training begins with, measured as its result will be, and what became of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from dq.detector.engines.measurement import measure
from dq.detector.evaluation.evaluate import main_metric
from dq.detector.step.rank_state import generators, set_generators
from dq.detector.training.assignment import Resume
from dq.dist.work.on_main_rank import on_main_rank
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.quantizers.phase import Phase
from dq.quant.quantizers.restore import in_phase
from dq.tracking.record.stage_summary import StageSummary, read_summary, write_summary
from launcher.stages.stage import Stage

log = logging.getLogger(__name__)
BEGINNING = "beginning"
# They say how images are loaded, not which.
LOADING = ("samples_per_gpu", "test_mode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """The calibrated detector's metrics before the first step.

    Attributes:
        metrics: On ``data.test``; empty where a training goes on that does not know them.
        on_val: The same on ``data.val``, where that is the same data set; else None.
    """

    metrics: Mapping[str, float]
    on_val: Mapping[str, float] | None


def beginning(
    stage: Stage, detector: nn.Module, graph: QuantizedGraph, resume: Resume | None
) -> Beginning:
    """Measure what a quantized training begins with, unless that has just been done.

    Every rank must call it. Random numbers and the quantizers' phase stay as they were.

    Args:
        stage: The training.
        detector: Calibrated, on its device.
        graph: Its own.
        resume: Where a training goes on; its beginning is known, or unknown for ever.
    """
    if resume is not None:
        kept = resume.content.get("meta", {}).get(BEGINNING, {})
        return Beginning(metrics=kept, on_val=None)
    config = stage.plan.config
    metrics = on_main_rank(lambda: _just_measured(stage))
    if metrics is None:
        log.info("evaluating what the training begins with")
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
    """Return what the calibration stage with this very config has written beside its checkpoint."""
    parent = stage.parent
    if parent is None:
        return None
    done = read_summary(parent.path.parent)
    if done is None or done.sha256 != parent.sha256 or done.stage != "calibrated":
        return None
    if done.key != stage.plan.key("calibrated", stage.place.device.type, done.parent):
        return None
    return done.metrics or None


def compared(stage: Stage, summary: StageSummary, begun: Beginning) -> StageSummary:
    """Return the summary with the value it began with, and write it; every rank must call it."""
    start = begun.metrics.get(summary.metric)
    if start is None and begun.metrics:
        start = main_metric(begun.metrics)[1]
    found = replace(summary, start=start)
    on_main_rank(lambda: write_summary(stage.folder, found))
    return found
