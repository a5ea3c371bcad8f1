"""The result table: float, int8 calibrated, int8 QAT."""

from __future__ import annotations

from collections.abc import Mapping

from dq.tracking.record.stage_summary import StageSummary

COLUMNS = {"float": "float", "calibrated": "{bits} calibrated", "qat": "{bits} QAT"}


def below_start(summary: StageSummary) -> str | None:
    """Return a sentence about a training that ended below its start, None if it did not."""
    if summary.start is None or 100 * summary.drop < 0.005:
        return None
    return (
        f"{summary.stage} ended {100 * summary.drop:.2f} points below its start: {summary.metric}"
        f" {100 * summary.start:.2f} % before the first step, {100 * summary.value:.2f} % after the"
        " last"
    )


def markdown_table(name: str, summaries: Mapping[str, StageSummary], bits: str = "int8") -> str:
    """Return one row of metrics in percent, with the difference to float.

    Args:
        name: Name of the experiment.
        summaries: Summaries by stage.
        bits: Integer format for the column titles.
    """
    present = [stage for stage in COLUMNS if stage in summaries]
    metric = summaries[present[0]].metric
    head = [f"{metric}, %", *(COLUMNS[stage].format(bits=bits) for stage in present)]
    reference = summaries.get("float")
    cells = [name]
    for stage in present:
        value = 100 * summaries[stage].value
        text = f"{value:.1f}"
        if reference is not None and stage != "float":
            text += f" ({value - 100 * reference.value:+.1f})"
        cells.append(text)
    widths = [max(len(h), len(c)) for h, c in zip(head, cells, strict=True)]
    rows = [head, ["-" * width for width in widths], cells]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    )
