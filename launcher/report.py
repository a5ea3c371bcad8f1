"""What a command prints at its end, from the main rank."""

from __future__ import annotations

from collections.abc import Mapping

from dq.quant.recipe import Recipe
from dq.tracking.plots import write_plots
from dq.tracking.summary import StageSummary, read_summary
from dq.tracking.table import COLUMNS, markdown_table
from launcher.session import Session


def say_result(place: Session, summary: StageSummary) -> None:
    """Print a stage's metric and where its checkpoint lies."""
    if place.environment.is_main:
        path = place.experiment / summary.stage / str(summary.checkpoint)
        print(f"{summary.stage}: {summary.metric} {100 * summary.value:.2f} %, checkpoint {path}")


def say_metrics(place: Session, summary: StageSummary) -> None:
    """Print every metric with all its digits, so that two evaluations can be compared."""
    if place.environment.is_main:
        for name, value in summary.metrics.items():
            print(f"{name} {value!r}")


def stage_summaries(place: Session) -> dict[str, StageSummary]:
    """Return the results that the experiment's stages have left, in the order of the table."""
    found = {stage: read_summary(place.experiment / stage) for stage in COLUMNS}
    return {stage: summary for stage, summary in found.items() if summary is not None}


def say_table(place: Session, summaries: Mapping[str, StageSummary], recipe: Recipe) -> None:
    """Print the result table and where everything lies; write both beside the stages."""
    if not place.environment.is_main:
        return
    bits = f"int{recipe.activation.bits}"
    if recipe.weight.bits != recipe.activation.bits:
        bits = f"W{recipe.weight.bits}A{recipe.activation.bits}"
    table = markdown_table(place.experiment.name, summaries, bits)
    (place.experiment / "results.md").write_text(table + "\n")
    plots = write_plots(place.experiment / "plots", place.experiment, summaries)
    print()
    print(table)
    print()
    print(f"runs and logs  {place.experiment}")
    for stage, summary in summaries.items():
        path = place.experiment / stage / str(summary.checkpoint)
        print(f"{stage:<14} {path} ({summary.seconds:.0f} s)")
    for path in plots:
        print(f"plot           {path}")
