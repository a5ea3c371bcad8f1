"""The stage that calibrates a float checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dq.counted import counted
from dq.detector.calibration.calibrate import calibration_of
from dq.detector.model.checkpoint_content import originals_of, recipe_of
from dq.detector.model.graph import quantize_detector
from dq.detector.model.stored_detector import float_detector, quantize_as_stored
from dq.detector.step.rank_state import seed_everything
from dq.dist.exchange import collectives
from dq.dist.files.checkpoint import load_checkpoint
from dq.dist.rendezvous.restarts import restart_counted
from dq.dist.work.on_main_rank import on_main_rank
from dq.dist.work.on_one_rank import run_on_rank
from dq.quant.analysis.sensitivity import Sensitivity
from dq.quant.graph.per_channel.channel_scales import scaled_names
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.ptq.widths import set_bits_
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe
from dq.sync import calibrate_on_one_rank, sensitivities_over_ranks, share_channel_scales_
from dq.tracking.record.stage_summary import StageSummary
from launcher.plan import Plan
from launcher.session import Session
from launcher.stage.conclusion import conclude
from launcher.stage.evidence import figures_of
from launcher.stage.stage import Stage, read_checkpoint, reusable, stage_of
from launcher.stage.tracked import tracked

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """What a calibration has changed besides the ranges.

    Attributes:
        recipe: The config's, with what repairs raised and scaled.
        originals: See `dq.quant.ptq.repairs.Calibration.originals`; on the CPU, on all ranks.
    """

    recipe: Recipe
    originals: Mapping[str, Tensor]


def calibrated(
    plan: Plan, place: Session, checkpoint: Path, *, trusted: bool, reuse: bool
) -> StageSummary:
    """Calibrate a float checkpoint on one rank, copy the ranges to all ranks, and evaluate.

    Args:
        plan: All settings of the command.
        place: The process.
        checkpoint: The float checkpoint.
        trusted: Whether the checkpoint may be unpickled.
        reuse: Whether a finished stage with the same settings is used instead.
    """
    parent = read_checkpoint(checkpoint, trusted=trusted)
    begun = stage_of(plan, place, "calibrated", parent)
    if reuse and (done := reusable(begun)):
        return done
    with tracked(begun) as stage:
        seed_everything(plan.seed)
        kept = _kept(stage, reuse)
        recipe = None if kept is None else recipe_of(kept)
        content = parent.content if kept is None else kept
        detector = float_detector(plan.config, content, parent.source, place.device)
        if kept is None or recipe is None:
            graph = quantize_detector(detector, plan.settings.recipe)
            made = calibrate_all(stage, detector, graph)
        else:
            log.info("evaluating the calibration that was finished before this stage was stopped")
            graph = quantize_as_stored(detector, recipe, kept, stage.checkpoint.name)
            originals = originals_of(graph, kept, stage.checkpoint.name)
            made = Calibrated(recipe=recipe, originals=originals)
        figures = figures_of(stage, graph)
        return conclude(stage, detector, graph, made.recipe, figures, made.originals)


def _kept(stage: Stage, reuse: bool) -> dict[str, Any] | None:
    """Return the checkpoint of this same calibration if only its evaluation was stopped.

    Every rank must call it.

    Args:
        stage: The stage that wrote it.
        reuse: Whether the command uses earlier results. A restarted job always does.
    """

    def read() -> dict[str, Any] | None:
        if not (reuse or restart_counted()) or not stage.checkpoint.is_file():
            return None
        try:
            content = load_checkpoint(stage.checkpoint)
        except ValueError as error:
            log.warning("skipped: %s", error)
            return None
        return content if content["meta"].get("key") == stage.key else None

    return on_main_rank(read)


def calibrate_all(stage: Stage, detector: nn.Module, graph: QuantizedGraph) -> Calibrated:
    """Calibrate and repair.

    One rank finds ranges and repairs, and all ranks measure sensitivities.
    """
    plan, place = stage.plan, stage.place
    calibration = calibration_of(
        detector,
        graph,
        place.device,
        weight_range=plan.settings.recipe.weight_range,
        repair=plan.settings.repair,
    )
    rank = place.calibration_rank
    run_on_rank(lambda: calibration.find_ranges_(plan.calibration_batches()), rank=rank)
    share_channel_scales_(graph, source=rank)
    found: list[Sensitivity] = []
    if plan.settings.repair.mixed is not None:
        found = sensitivities_over_ranks(
            graph, calibration.few_images, calibration.part_calls, source=rank
        )
    raised: list[str] = []
    proof = calibrate_on_one_rank(
        graph, lambda: raised.extend(calibration.finish_(found)), rank=rank
    )
    names: list[str] = collectives.broadcast_object(raised, source=rank)
    if not raised:  # Ranks that did not calibrate have the ranges already, but not the bit widths.
        set_bits_(graph, names)
    set_phase(graph.quantizers, Phase.FROZEN)
    ranks = counted(collectives.world_size(), "rank[s] [has|have]")
    log.info("%s the same ranges, digest %s", ranks, proof[:16])
    recipe = plan.settings.recipe
    originals = {k: v.cpu() for k, v in calibration.originals().items()}
    return Calibrated(
        recipe=replace(recipe, raised=(*recipe.raised, *names), scaled=scaled_names(graph)),
        originals=collectives.broadcast_object(originals, source=rank),
    )
