"""The stage that measures each quantizer's effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dq.detector.calibration.calibrate import calibration_of, calls_of_roi_heads
from dq.detector.model.checkpoint_content import recipe_of
from dq.detector.model.graph import quantize_detector
from dq.detector.model.stored_detector import float_detector, quantize_as_stored
from dq.detector.step.rank_state import seed_everything
from dq.dist.work.on_one_rank import run_on_rank
from dq.quant.graph.nodes import Given
from dq.quant.ptq.mixed_precision import analyze
from dq.quant.ptq.repairs import first_images
from dq.quant.ptq.settings import Mixed
from dq.sync import sensitivities_over_ranks, share_channel_scales_
from launcher.plan import Plan
from launcher.session import Session
from launcher.stage.stage import read_checkpoint


def analyzed(
    plan: Plan, place: Session, checkpoint: Path, *, mixed: Mixed, trusted: bool
) -> dict[str, Any] | None:
    """Measure each quantizer's effect on the outputs; the ranks share the quantizers out.

    A float checkpoint is calibrated first.

    Returns:
        On the main rank the argument of `dq.tracking.reports.sensitivity.sensitivity_table`, None
        on the others.
    """
    parent = read_checkpoint(checkpoint, trusted=trusted)
    seed_everything(plan.seed)
    detector = float_detector(plan.config, parent.content, parent.source, place.device)
    stored = recipe_of(parent.content)
    graph = (
        quantize_detector(detector, plan.settings.recipe)
        if stored is None
        else quantize_as_stored(detector, stored, parent.content, parent.source)
    )

    images: list[Tensor] = []
    parts: dict[str, Sequence[Given]] = {}

    def begin() -> None:
        batches = plan.calibration_batches()
        if stored is None:
            repair = replace(plan.settings.repair, mixed=None)
            weight_range = plan.settings.recipe.weight_range
            calibration = calibration_of(
                detector, graph, place.device, weight_range=weight_range, repair=repair
            )
            kept = list(batches)
            calibration.find_ranges_(kept)
            calibration.finish_()
            batches = iter(kept)
        images.extend(b.to(place.device) for b in first_images(batches, mixed.images))
        parts.update(calls_of_roi_heads(detector, graph, images))

    run_on_rank(begin)
    share_channel_scales_(graph)
    found = sensitivities_over_ranks(graph, images, parts)
    return run_on_rank(lambda: analyze(graph, images, found, mixed, parts))
