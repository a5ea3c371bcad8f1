"""The health of a quantized network's ranges, from the last table of its quantizers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dq.tracking.record.rows import QUANTIZERS, last_whole_row

WORST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What the last table of quantizers says.

    Attributes:
        when: ``calibration``, ``epoch`` or ``end``.
        epoch: Number of epochs done.
        number: Number of quantizers.
        sqnr: Median ratio of signal to rounding noise, in decibels; None if unknown.
        noisiest: Names and decibels of the quantizers with the lowest ratio, the worst first.
        clipped: Names and shares of the quantizers that clip most, the worst first.
        oscillating: Largest share of oscillating weights in a layer; None if not watched.
    """

    when: str
    epoch: float
    number: int
    sqnr: float | None
    noisiest: tuple[tuple[str, float], ...]
    clipped: tuple[tuple[str, float], ...]
    oscillating: float | None


def health_of(folder: Path) -> Health | None:
    """Return the health of a stage's quantizers; None if they were not measured."""
    table = last_whole_row(folder / QUANTIZERS)
    if table is None or not isinstance(table.get("rows"), list):
        return None
    columns = [str(name) for name in table.get("columns") or ()]
    rows = [dict(zip(columns, row, strict=False)) for row in table["rows"] if isinstance(row, list)]
    rows = [row for row in rows if "name" in row]
    if not rows:
        return None
    # `sqnr` is of a quantizer alone; `network_sqnr` includes the noise of those before it.
    ratios = _known(rows, "sqnr")
    clipped = sorted(_known(rows, "clipped"), key=lambda pair: -pair[1])
    moving = [value for _, value in _known(rows, "oscillating")]
    return Health(
        when=str(table.get("when")),
        epoch=float(table.get("epoch") or 0),
        number=len(rows),
        sqnr=statistics.median(value for _, value in ratios) if ratios else None,
        noisiest=tuple(sorted(ratios, key=lambda pair: pair[1])[:WORST]),
        clipped=tuple(pair for pair in clipped[:WORST] if pair[1] > 0),
        oscillating=max(moving, default=None),
    )


def _known(rows: Sequence[dict[str, Any]], column: str) -> list[tuple[str, float]]:
    found = ((str(row["name"]), row.get(column)) for row in rows)
    return [
        (name, float(value)) for name, value in found
        if isinstance(value, int | float) and math.isfinite(value)
    ]  # fmt: skip
