"""Format the measured ratios as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.engines.files import NNCF, ORT, OURS, PLAIN
from dq.quant.latency.paired import Spread

HEADS = {OURS: "ours", PLAIN: "ours, no zero points", ORT: "ONNX Runtime's quantizer", NNCF: "NNCF"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One quantized file in one engine.

    Attributes:
        times_as_fast: Time in float divided by its own.
        num_integer: Number of layers in integers.
        num_layers: Number of all layers.
        against_ours: Time of our file divided by its own.
    """

    times_as_fast: Spread
    num_integer: int
    num_layers: int
    against_ours: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One net in one engine.

    Attributes:
        net: Its name.
        size: Height and width.
        engine: Its name.
        ms_float: Median milliseconds of the float model.
        cells: Cells by the maker of the file.
    """

    net: str
    size: tuple[int, int]
    engine: str
    ms_float: float
    cells: dict[str, Cell]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown: speed relative to float, and layers in integers."""
    heads = ["net", "size", "engine", "float, ms", *HEADS.values(), "ours by the best other"]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        others = [c.against_ours.median for m, c in row.cells.items() if m not in (OURS, PLAIN)]
        lines.append(
            [
                row.net,
                f"{row.size[0]}x{row.size[1]}",
                row.engine,
                f"{row.ms_float:.1f}",
                *(_text(row.cells.get(maker)) for maker in HEADS),
                f"{1 / max(others):.2f}" if others else "",
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _text(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    own = cell.times_as_fast
    return (
        f"{own.median:.2f} ({own.low:.2f} to {own.high:.2f}), {cell.num_integer} of"
        f" {cell.num_layers}"
    )
