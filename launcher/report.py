"""Print a command's results, on the main rank only."""

from __future__ import annotations

import pprint
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dq.detector.step.guards import Guards
from dq.engines import backend_of
from dq.tracking.record.matches import read_matches
from dq.tracking.record.stage_summary import StageSummary, read_summary
from dq.tracking.reports.bootstrap import difference
from dq.tracking.reports.class_table import SHOWN as CLASSES_SHOWN
from dq.tracking.reports.class_table import class_table
from dq.tracking.reports.pareto import pareto_table, write_pareto
from dq.tracking.reports.plots import write_plots
from dq.tracking.reports.table import (
    COLUMNS,
    below_start,
    control_lines,
    markdown_table,
)
from dq.whole_file import write_whole
from launcher.config import section_of_recipe
from launcher.failure import WORLD_ERROR
from launcher.session import Session

# Stages whose metrics are compared.
PAIRS = (
    ("calibrated", "float"), ("qat", "float"), ("qat", "calibrated"), ("control", "float"),
    ("qat", "control"),
)  # fmt: skip

if TYPE_CHECKING:
    from dq.detector.engines.agreement import Agreement
    from dq.detector.engines.onnx_evaluation import IntegerResult
    from dq.quant.latency.result import Latency
    from launcher.plan import Plan
    from launcher.stages.recipe_search import Found, Limits


def say_result(place: Session, summary: StageSummary) -> None:
    """Print a stage's metric and the path of its checkpoint."""
    if place.environment.is_main:
        path = place.experiment / summary.stage / str(summary.checkpoint)
        print(f"{summary.stage}: {summary.metric} {100 * summary.value:.2f} %, checkpoint {path}")


def say_verdict(place: Session, summary: StageSummary, guards: Guards) -> int:
    """Print a warning if QAT ended below its start, and return the command's exit code."""
    text = below_start(summary)
    if text is None:
        return 0
    serious = max(summary.drop, summary.last_drop) > guards.max_drop
    if place.environment.is_main:
        text += "; lower the rate (quant.training={'optimizer.lr': ...})"
        kind = "warning" if serious else "note"
        print(f"{kind}: {text}", file=sys.stderr, flush=True)
    return WORLD_ERROR if serious and guards.worse == "stop" else 0


def say_control(place: Session, qat: StageSummary, control: StageSummary, checkpoint: Path) -> None:
    """Print how QAT compares with its control: the float detector, trained further.

    Args:
        place: Of the command.
        qat: The quantized training.
        control: Its control.
        checkpoint: Where the control started: a float or a calibrated detector.
    """
    if not place.environment.is_main:
        return
    before = _float_before(checkpoint, control.parent)
    if before is not None and before.metric != control.metric:
        before = None
    for line in control_lines(qat, control, None if before is None else before.value):
        print(line)


def _float_before(checkpoint: Path, sha256: str | None) -> StageSummary | None:
    """Return the summary of the float detector that a control started from.

    None if that detector was not measured, or its summary is not beside the checkpoint.

    Args:
        checkpoint: A float or a calibrated detector.
        sha256: Of that file. A work dir may have been used for another detector since.
    """
    found = read_summary(checkpoint.parent)
    if found is not None and found.stage == "calibrated" and found.sha256 == sha256:
        sha256 = found.parent
        found = read_summary(checkpoint.parent.parent / "float")
    return found if found is not None and found.sha256 == sha256 else None


def say_differences(place: Session, stages: Sequence[str]) -> None:
    """Print the difference of COCO's metric between stages, and whether it is more than chance.

    Args:
        place: Of the command.
        stages: Finished stages of this experiment. Each is compared with the float detector, and
            QAT with its control too.
    """
    if not place.environment.is_main:
        return
    for second, first in PAIRS:
        if not {first, second} <= set(stages):
            continue
        pair = [read_matches(place.experiment / stage) for stage in (first, second)]
        found = None if None in pair else difference(*pair)  # type: ignore[arg-type]
        if found is not None:
            print(f"{second} - {first}, COCO's mAP: {found}")


def say_metrics(place: Session, summary: StageSummary) -> None:
    """Print the AP of each class, and every metric with all digits to compare evaluations by."""
    if place.environment.is_main:
        if by_class := class_table({summary.stage: summary}, rows=CLASSES_SHOWN):
            print(by_class)
        for name, value in summary.metrics.items():
            print(f"{name} {value!r}")


def say_tables(place: Session, tables: str) -> None:
    """Print mmdet's tables of a metric; by class if that was asked for."""
    if place.environment.is_main and tables:
        print(tables)


def say_files(place: Session, files: Sequence[Path]) -> None:
    """Print the paths of files."""
    if place.environment.is_main:
        for file in files:
            print(file)


def stage_summaries(place: Session) -> dict[str, StageSummary]:
    """Return the summaries of the experiment's finished stages, in the order of the table."""
    found = {stage: read_summary(place.experiment / stage) for stage in COLUMNS}
    return {stage: summary for stage, summary in found.items() if summary is not None}


def say_agreement(place: Session, result: Agreement, backend: str) -> None:
    """Print the metric, boxes and size of an exported file, compared with the fake-quantized."""
    if not place.environment.is_main:
        return
    boxes = result.boxes
    print(f"{result.metric}, %  fake-quantized {100 * result.fake_quantized:.2f}", end="")
    print(f"  {backend} {100 * result.integer:.2f}")
    print(
        f"boxes    {boxes.num_first} fake-quantized, {boxes.num_second} {backend},"
        f" {boxes.num_matched} alike; corners differ by {boxes.corner_mean:.3f} pixels on average"
        f" (at most {boxes.corner_max:.2f}), scores by {boxes.score_mean:.4f}"
        f" ({boxes.score_max:.3f})"
    )
    mib = [size / 2**20 for size in (result.bytes_integer, result.bytes_float)]
    print(f"size     {mib[0]:.2f} MiB, {mib[1]:.2f} MiB in float ({mib[1] / mib[0]:.1f}x)")


def say_layers(place: Session, result: IntegerResult) -> None:
    """Print the engine, and how many layers it computes in integers and in float."""
    if place.environment.is_main:
        print(f"engine   {result.engine}")
        print(f"layers   {result.num_integer} in integers, {result.num_float} in float")


def say_speed(place: Session, model: Path, latency: Latency | str | None) -> None:
    """Print an exported model's speed relative to the same model in float.

    Args:
        place: Of the command.
        model: The file.
        latency: From `dq.detector.engines.latency.measured`: the speed, or the reason why it was
            not measured, or None.
    """
    if not place.environment.is_main or latency is None:
        return
    if isinstance(latency, str):
        print(f"speed    not measured: {latency}")
        return
    more = (
        f"; `launcher bench --per-layer --backend {shlex.quote(backend_of(latency.engine))}"
        f" {shlex.quote(str(model))}` says which layers cost it"
    )
    print(f"speed    {latency.sentence()}{more if latency.is_slower else ''}")


def say_gate(place: Session, result: Agreement, measured: IntegerResult | None) -> None:
    """Print in one line that the gate was missed, and the layers that differ most.

    Args:
        place: Of the command.
        result: Of the evaluation.
        measured: The same result if an engine computed it, else None.
    """
    if not place.environment.is_main:
        return
    more = "" if measured is None else _moved(measured) + _named(measured)
    print(
        f"error: the exported model's {result.metric} differs from the fake-quantized one by"
        f" {100 * abs(result.integer - result.fake_quantized):.2f} points, more than 0.1;"
        f" {result.cause}{more}",
        file=sys.stderr,
        flush=True,
    )


def _moved(result: IntegerResult) -> str:
    if result.fake_again is None:
        return ""
    moved = 100 * abs(result.fake_again - result.fake_quantized)
    return (
        f"; the fake-quantized metric itself moves by {moved:.2f} points, to"
        f" {100 * result.fake_again:.2f} %, when torch sums in float, in another order"
    )


def _named(result: IntegerResult) -> str:
    named = [
        f"{' and '.join(layer.layers) or layer.site} ({layer.excess:.2f} scales beyond rounding)"
        for layer in result.layers
    ]
    return f"; these differ most: {', '.join(named)}" if named else ""


def say_search(place: Session, plan: Plan, found: Found, limits: Limits) -> int:
    """Print a search's table, its result and the section to paste; return the exit code.

    Returns:
        1 if no candidate meets the limit.
    """
    outcome, value = found.outcome, 100 * found.float_value
    if place.environment.is_main:
        folder = place.experiment / found.summary.stage
        chosen = outcome.chosen.candidate
        section = section_of_recipe(plan.config.get("quant"), chosen.recipe, chosen.repair)
        text = f"quant = {pprint.pformat(section, width=96, sort_dicts=False)}\n"
        write_whole(folder / "quant_section.py", text)
        paths = write_pareto(folder, found.rows, found.metric, value, limits.max_drop)
        print(pareto_table(found.rows, found.metric, value))
        print(f"\n{text}")
        for path in [*paths, folder / "quant_section.py"]:
            print(path)
        say_result(place, found.summary)
        if not outcome.meets_limit:
            print(_missed(found, limits), file=sys.stderr, flush=True)
    return 0 if outcome.meets_limit else WORLD_ERROR


def _missed(found: Found, limits: Limits) -> str:
    best = found.outcome.chosen
    drop = 100 * (found.float_value - best.value)
    why = "train it quantized from this checkpoint (`launcher qat`), or raise --max-raised"
    if found.outcome.ended_early:
        why = "the budget ended first, and the same command continues"
    return (
        f"error: no candidate is within {limits.max_drop:g} points of float; the best,"
        f" {best.candidate.name}, is {drop:.2f} points below; {why}"
    )


def say_table(place: Session, summaries: Mapping[str, StageSummary], bits: str) -> None:
    """Print the result table and all paths; write table and plots into the work dir.

    Args:
        place: Of the command.
        summaries: Of the finished stages.
        bits: Name of the integer formats, as in `launcher.plan.Plan.bits`.
    """
    if not place.environment.is_main:
        return
    table = markdown_table(place.experiment.name, summaries, bits)
    notes = [text for summary in summaries.values() if (text := below_start(summary))]
    table = "\n".join([table, *(f"\n{text}." for text in notes)])
    by_class = class_table(summaries, bits)
    write_whole(
        place.experiment / "results.md", "\n\n".join(filter(None, [table, by_class])) + "\n"
    )
    plots = write_plots(place.experiment / "plots", place.experiment, summaries)
    print()
    print(table)
    print()
    if by_class:
        print(class_table(summaries, bits, CLASSES_SHOWN))
        print()
    print(f"runs and logs  {place.experiment}")
    for stage, summary in summaries.items():
        path = place.experiment / stage / str(summary.checkpoint)
        print(f"{stage:<14} {path} ({summary.seconds:.0f} s)")
    for path in plots:
        print(f"plot           {path}")
