"""The result table: float, int8 calibrated, int8 QAT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dq.tracking.record.stage_summary import StageSummary

COLUMNS = {
    "float": "float",
    "calibrated": "{bits} calibrated",
    "qat": "{bits} QAT",
    "control": "float, trained on",
}
# A float detector that gains more than this by training on was not trained to its end. 0 to 1.
NOT_AT_ITS_END = 0.01


def below_start(summary: StageSummary) -> str | None:
    """Return a sentence about a training that ended below its start, None if it did not."""
    if max(summary.drop, summary.last_drop) < 0.00005:
        return None
    if summary.drop >= summary.last_drop:
        text = (
            f"{summary.stage} ended {100 * summary.drop:.2f} points below its start:"
            f" {summary.metric} {100 * (summary.start or 0.0):.2f} % before the first step,"
            f" {100 * summary.value:.2f} % after the last"
        )
    else:
        text = (
            f"the last evaluation of {summary.stage} was {100 * summary.last_drop:.2f} points below"
            " its start"
        )
    if summary.chosen is not None:
        text += f"; the result is {summary.chosen}, the last step is in last.pth"
    return text


def control_lines(
    qat: StageSummary, control: StageSummary, before: float | None = None
) -> list[str]:
    """Return what the control of a quantized training says, one sentence each.

    Args:
        qat: The quantized training.
        control: The float detector, trained on by the same steps.
        before: The metric of the float detector before, 0 to 1, if it is known.
    """
    lines = [
        f"{qat.bits} QAT is {100 * (qat.value - control.value):+.2f} points from the float detector"
        f" trained on by the same steps ({qat.metric} {100 * qat.value:.2f} and"
        f" {100 * control.value:.2f} %)"
    ]
    if before is not None and control.value - before > NOT_AT_ITS_END:
        lines.append(
            f"the float detector was not trained to its end: it gains"
            f" {100 * (control.value - before):.2f} points by training on; give"
            f" {control.stage}/{control.checkpoint} as --checkpoint with another --work-dir, or"
            " train it longer; until then compare QAT with the control, not with that detector"
        )
    return lines


def markdown_table(name: str, summaries: Mapping[str, StageSummary], bits: str = "int8") -> str:
    """Return one row of metrics in percent, with the difference to float.

    Args:
        name: Name of the experiment.
        summaries: Summaries by stage.
        bits: Integer format for the column titles.
    """
    columns = titles(summaries, bits)
    metric = summaries[next(iter(columns))].metric
    reference = summaries.get("float")
    cells = [name]
    for stage in columns:
        value = 100 * summaries[stage].value
        text = f"{value:.1f}"
        if reference is not None and stage != "float":
            text += f" ({value - 100 * reference.value:+.1f})"
        cells.append(text)
    return aligned([[f"{metric}, %", *columns.values()], cells])


def titles(summaries: Mapping[str, StageSummary], bits: str) -> dict[str, str]:
    """Return the title of each stage that has a summary, in the order of the table.

    Args:
        summaries: Summaries by stage; stages that are not in the table, such as ``eval``, come last
            under their names.
        bits: Integer format, such as ``int8``.
    """
    found = {stage: text.format(bits=bits) for stage, text in COLUMNS.items() if stage in summaries}
    return found | {stage: stage for stage in summaries if stage not in found}


def markdown_cell(text: str) -> str:
    """Return a text for a cell of a Markdown table, which has one line and no bars."""
    return " ".join(text.split()).replace("|", "\\|")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as Markdown in columns of equal width; the first row is the head."""
    head, *others = [[markdown_cell(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *others, strict=True)]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in [head, ["-" * width for width in widths], *others]
    )
