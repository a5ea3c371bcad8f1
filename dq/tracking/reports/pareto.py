"""The result of ``launcher quantize`` as a table, a JSON file and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dq.tracking.record.json_file import json_text
from dq.tracking.reports.figure_file import write_figure
from dq.whole_file import write_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A candidate of a search.

    Attributes:
        name: Name of the candidate.
        value: Its metric in percent.
        drop: Points below the float detector.
        num_raised: Number of quantizers with 16 bits.
        mib: Size of its weights, in MiB.
        on_front: No other candidate is better in both metric and number of raised quantizers.
        chosen: It is the result.
        times_as_fast: Speed relative to the float detector, in the engine; None if not measured.
    """

    name: str
    value: float
    drop: float
    num_raised: int
    mib: float
    on_front: bool
    chosen: bool
    times_as_fast: float | None = None


def pareto_table(rows: Sequence[Row], metric: str, value: float) -> str:
    """Return the candidates as a Markdown table, in the order in which they were tried.

    Args:
        rows: At least one.
        metric: Name of the metric.
        value: The float detector's metric, in percent.
    """
    lines = [
        f"| | {metric}, % | drop | 16 bit | weights, MiB | x float | |",
        "|---|---|---|---|---|---|---|",
        f"| float | {value:.2f} | | | | 1.00 | |",
    ]
    for row in rows:
        fast = "" if row.times_as_fast is None else f"{row.times_as_fast:.2f}"
        mark = "chosen" if row.chosen else "front" if row.on_front else ""
        lines.append(
            f"| {row.name} | {row.value:.2f} | {row.drop:.2f} | {row.num_raised} | {row.mib:.2f} |"
            f" {fast} | {mark} |"
        )
    return "\n".join(lines)


def write_pareto(
    folder: Path, rows: Sequence[Row], metric: str, value: float, max_drop: float
) -> list[Path]:
    """Write ``pareto.json``, ``pareto.md`` and ``pareto.png`` into ``folder``; return the paths.

    Args:
        folder: It exists.
        rows: At least one.
        metric: Name of the metric.
        value: The float detector's metric, in percent.
        max_drop: The limit, in points.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    data, table, plot = (folder / f"pareto.{kind}" for kind in ("json", "md", "png"))
    content = {"metric": metric, "float": value, "rows": [asdict(row) for row in rows]}
    write_whole(data, json_text({**content, "max_drop": max_drop}, indent=1))
    write_whole(table, pareto_table(rows, metric, value) + "\n")
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    front = sorted((row for row in rows if row.on_front), key=lambda row: row.num_raised)
    axes.scatter([r.num_raised for r in rows], [r.value for r in rows], s=14, c="tab:gray")
    axes.plot([r.num_raised for r in front], [r.value for r in front], "o-", c="tab:blue")
    for row in front:
        axes.annotate(row.name, (row.num_raised, row.value), fontsize=7, rotation=15)
    axes.axhline(value, color="black", lw=0.8)
    axes.axhline(value - max_drop, color="tab:red", lw=0.8, ls="--")
    axes.set_xlabel("quantizers with 16 bit")
    axes.set_ylabel(f"{metric} (%); float black, limit red")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    write_figure(plot, figure)
    return [table, data, plot]
