"""The stage that searches for the cheapest recipe within a limit on the loss."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dq.detector.data.datasets import dataset_digest
from dq.detector.model.checkpoint_content import recipe_of
from dq.detector.search.measured_images import measured_images
from dq.detector.search.trials import Setting, Trials
from dq.detector.step.rank_state import seed_everything
from dq.dist.work.on_main_rank import on_main_rank
from dq.quant.search.candidate import Candidate
from dq.quant.search.ladder import Outcome, Search, TimeUpError, pareto_front
from dq.tracking.record.stage_summary import StageSummary
from dq.tracking.reports.pareto import Row
from launcher.plan import Plan
from launcher.session import Session
from launcher.stage.conclusion import conclude
from launcher.stage.evidence import figures_of
from launcher.stage.stage import Parent, Stage, read_checkpoint, stage_of
from launcher.stage.tracked import tracked

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a search.

    Attributes:
        max_drop: Largest accepted loss of the metric against the float detector, in points.
        metric: Name of the metric; None for the data set's main one.
        budget_s: Seconds after which no candidate is started; None for no limit.
        max_raised: Largest number of quantizers with 16 bits.
    """

    max_drop: float
    metric: str | None = None
    budget_s: float | None = None
    max_raised: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The result of a search.

    Attributes:
        summary: Summary of the stage: the chosen recipe, evaluated on ``data.test``.
        rows: Rows of the table.
        metric: Name of the metric on the images of the search.
        float_value: The metric of the float detector, 0 to 1.
        outcome: The chosen candidate, and whether it meets the limit.
    """

    summary: StageSummary
    rows: Sequence[Row]
    metric: str
    float_value: float
    outcome: Outcome


def searched(
    plan: Plan, place: Session, checkpoint: Path, limits: Limits, *, trusted: bool
) -> Found:
    """Search for the cheapest recipe within the limits; every rank must call it.

    The chosen detector is written as the stage's checkpoint, as by a calibration.

    Raises:
        ValueError: The checkpoint is quantized already, there are no images to measure on, or the
            time limit was reached before the first candidate.
    """
    parent = read_checkpoint(checkpoint, trusted=trusted)
    if recipe_of(parent.content) is not None:
        raise ValueError(f"{checkpoint} is quantized; a search needs a float checkpoint")
    with tracked(stage_of(plan, place, "quantize", parent, limits)) as stage:

        def values(candidates: Sequence[Candidate]) -> Sequence[float]:
            _check_time(stage, limits)
            return trials.values(candidates)

        try:
            _check_time(stage, limits)
            trials = Trials(_setting(stage, parent), limits.metric)
            search = Search(
                # The margin is for rounding errors of float sums.
                least=trials.float_value - limits.max_drop / 100 - 1e-9,
                measure=values,
                rank=trials.ranking,
                max_raised=limits.max_raised,
                # Each rank calibrates one. A larger group would end later after the budget.
                together=place.environment.world_size,
            )
            outcome = search.run(plan.settings.recipe, plan.settings.repair)
        except TimeUpError:
            raise ValueError(
                "--budget ended before the first candidate was measured; give more time"
            ) from None
        rows = _rows(trials, outcome)
        chosen = outcome.chosen.candidate
        stored = trials.stored(chosen)
        detector, graph = stored.detector, stored.graph
        assert graph is not None
        figures = figures_of(stage, graph)
        summary = conclude(stage, detector, graph, stored.recipe, figures, stored.originals)
        trials.remove_checkpoints(but=chosen)
        return Found(
            summary=summary,
            rows=rows,
            metric=trials.metric,
            float_value=trials.float_value,
            outcome=outcome,
        )


def _setting(stage: Stage, parent: Parent) -> Setting:
    plan, place, schedule = stage.plan, stage.place, stage.plan.settings.schedule
    # Part of the key, because files may have changed under the same names.
    annotations = on_main_rank(lambda: [dataset_digest(plan.config, s) for s in ("val", "train")])
    return Setting(
        config=plan.config,
        content=parent.content,
        source=parent.source,
        device=place.device,
        batches=plan.calibration_batches,
        dataset=measured_images(
            plan.config,
            calibrated_on=schedule.calibration_batches * schedule.calibration_batch_size,
            seed=plan.seed,
        ),
        begin=partial(seed_everything, plan.seed),
        key=plan.key("quantize", place.device.type, parent.sha256, annotations),
        folder=stage.folder / "candidates",
    )


def _check_time(stage: Stage, limits: Limits) -> None:
    """Raise TimeUpError on all ranks if the budget has ended by the main rank's clock."""
    elapsed = time.monotonic() - stage.began
    budget_s = limits.budget_s
    if budget_s is not None and on_main_rank(lambda: elapsed > budget_s):
        log.warning("the budget of %.0f s has ended: no more candidates are tried", budget_s)
        raise TimeUpError
    stage.place.signals.raise_if_stopped()


def _rows(trials: Trials, outcome: Outcome) -> list[Row]:
    front = {one.candidate.name for one in pareto_front(outcome.tried)}
    chosen = outcome.chosen.candidate.name
    # Only those that a user may choose: an export takes some seconds.
    speeds = {
        one.candidate.name: trials.speed(one.candidate)
        for one in outcome.tried
        if one.candidate.name in front | {chosen}
    }
    return [
        Row(
            name=one.candidate.name,
            value=round(100 * one.value, 4),
            drop=round(100 * (trials.float_value - one.value), 4),
            num_raised=one.candidate.num_raised,
            mib=trials.num_bytes(one.candidate) / 2**20,
            on_front=one.candidate.name in front,
            chosen=one.candidate.name == chosen,
            times_as_fast=speeds.get(one.candidate.name),
        )
        for one in outcome.tried
    ]
