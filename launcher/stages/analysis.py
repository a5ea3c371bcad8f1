"""The stage that measures each quantizer's effect."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dq.detector.calibration.calibrate import calibrate_and_repair
from dq.detector.model.checkpoint_content import recipe_of
from dq.detector.model.graph import quantize_detector
from dq.detector.model.stored_detector import float_detector, quantize_as_stored
from dq.detector.step.rank_state import seed_everything
from dq.dist.work.on_one_rank import run_on_rank
from dq.quant.ptq.mixed_precision import analyze
from dq.quant.ptq.repairs import first_images
from dq.quant.ptq.settings import Mixed
from launcher.plan import Plan
from launcher.session import Session
from launcher.stages.stage import read_checkpoint


def analyzed(
    plan: Plan, place: Session, checkpoint: Path, *, mixed: Mixed, trusted: bool
) -> dict[str, Any] | None:
    """Measure each quantizer's effect on the outputs; one rank works, the others wait.

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

    def work() -> dict[str, Any]:
        batches = plan.calibration_batches()
        if stored is not None:
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
