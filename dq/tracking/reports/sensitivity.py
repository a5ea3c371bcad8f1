"""The results of ``launcher analyze`` as a table, a JSON file and a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dq.counted import counted
from dq.tracking.record.json_file import json_text
from dq.tracking.reports.figure_file import write_figure
from dq.whole_file import write_whole


def sensitivity_table(result: Mapping[str, Any], rows: int | None = 20) -> str:
    """Return the most sensitive quantizers as a Markdown table, and the gain of raising some.

    Args:
        result: ``quantizers`` (list of dicts with name, kind, bits, sqnr; most sensitive first),
            ``sqnr`` (all quantizers on), ``raised`` (names) and ``sqnr_raised``.
        rows: Number of rows; None for all.
    """
    shown = result["quantizers"][:rows]
    lines = ["| quantizer | kind | bits | SQNR alone (dB) | |", "|---|---|---|---|---|"]
    for entry in shown:
        mark = "-> 16 bit" if entry["name"] in result["raised"] else ""
        cells = [entry["name"], entry["kind"], str(entry["bits"]), _number(entry["sqnr"]), mark]
        lines.append(f"| {' | '.join(cells)} |")
    left = len(result["quantizers"]) - len(shown)
    lines.append("")
    if left > 0:
        lines.append(f"{counted(left, 'more quantizer[s] [disturbs|disturb]')} the outputs less.")
    lines.append(
        f"SQNR of the outputs: {_number(result['sqnr'])} dB with all quantizers rounding,"
        f" {_number(result['sqnr_raised'])} dB with {len(result['raised'])} raised to 16 bit."
    )
    return "\n".join(lines)


def write_sensitivity(folder: Path, result: Mapping[str, Any]) -> list[Path]:
    """Write ``sensitivity.json`` and ``sensitivity.png`` into ``folder`` and return their paths.

    Args:
        folder: Created if it does not exist.
        result: As for `sensitivity_table`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    data, plot = folder / "sensitivity.json", folder / "sensitivity.png"
    write_whole(data, json_text(result, indent=1))
    figure, axes = pyplot.subplots(figsize=(10, 4.5))
    for kind, color in (("weight", "tab:blue"), ("activation", "tab:orange")):
        points = [
            (place, entry["sqnr"])
            for place, entry in enumerate(result["quantizers"])
            if entry["kind"] == kind and math.isfinite(entry["sqnr"])
        ]
        axes.scatter([p for p, _ in points], [y for _, y in points], s=12, c=color, label=kind)
    for place, entry in enumerate(result["quantizers"]):
        if entry["name"] in result["raised"]:
            axes.annotate(entry["name"], (place, entry["sqnr"]), fontsize=6, rotation=20)
    axes.set_xlabel("quantizers, most sensitive first")
    axes.set_ylabel("SQNR of the outputs, only this quantizer on (dB)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    write_figure(plot, figure)
    return [data, plot]


def _number(value: float) -> str:
    return f"{value:.1f}"
