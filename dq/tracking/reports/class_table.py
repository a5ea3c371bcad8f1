"""The average precision of each class by stage: which classes quantization costs most."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, nan

from dq.counted import counted, form
from dq.tracking.record.stage_summary import StageSummary
from dq.tracking.reports.table import aligned, titles

# Rows of the table on the screen.
SHOWN = 20


def class_table(
    summaries: Mapping[str, StageSummary], bits: str = "int8", rows: int | None = None
) -> str:
    """Return the AP of each class at IoU 0.5 in percent, with the difference to the first stage.

    The classes that lost most come first; with one stage, those with the lowest AP.

    Args:
        summaries: Summaries by stage.
        bits: Integer format for the column titles.
        rows: Largest number of classes; all by default. A line says how many are left out.

    Returns:
        The table, empty if fewer than two classes were measured.
    """
    measured = {stage: s for stage, s in summaries.items() if s.classes}
    head = titles(measured, bits)
    tables = [measured[stage].classes for stage in head]
    # A class without boxes has no AP.
    names = [n for n in (tables or [{}])[0] if all(isfinite(t.get(n, nan)) for t in tables)]
    if len(names) < 2:
        return ""
    first, *others = tables
    last = others[-1] if others else None

    def gain(name: str) -> float:
        return first[name] if last is None else last[name] - first[name]

    names.sort(key=lambda name: (gain(name), name))
    kept = names[:rows]
    lines = [["AP of a class, %", *head.values()]]
    for name in kept:
        cells = [f"{100 * other[name]:.1f} ({100 * (other[name] - first[name]):+.1f})"
                 for other in others]  # fmt: skip
        lines.append([name, f"{100 * first[name]:.1f}", *cells])
    text = aligned(lines)
    if len(kept) < len(names):
        left = len(names) - len(kept)
        more = f"{counted(left, 'more class[es]')}, which"
        verb = "lost less" if others else form(left, "[has|have] more")
        text += f"\n\nand {more} {verb}"
    return text
