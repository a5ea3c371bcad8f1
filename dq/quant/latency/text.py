"""What was measured, as lines to print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dq.quant.latency.comparison import Timed
from dq.quant.latency.paired import Spread
from dq.quant.latency.per_layer import WORTHWHILE, LayerTime, costly, not_worthwhile, rules_text

MIB = 2**20


def table(timed: Mapping[str, Timed]) -> list[str]:
    """Return a line for each model, with medians and, in brackets, quartiles of ratios."""
    several = len(timed) > 1
    head = ["model", "ms", "float ms", "times as fast", "in integers", "MiB", "float MiB"]
    rows = [head + ["as the first"] * several]
    for name, own in timed.items():
        row = [name, f"{own.ms:.2f}", *[""] * 5]
        if own.latency is not None:
            latency = own.latency
            row[2:] = [
                f"{latency.ms_float:.2f}",
                _ratio(latency.times_as_fast),
                f"{latency.num_integer} of {latency.num_layers}",
                f"{latency.bytes_integer / MIB:.2f}",
                f"{latency.bytes_float / MIB:.2f}",
            ]
        rows.append(row + [_ratio(own.as_first)] * several)
    return aligned(rows)


def layer_table(times: Sequence[LayerTime]) -> list[str]:
    """Return a line for each layer."""
    rows = [["layer", "calls", "in integers", "ms", "float ms", "times as fast"]]
    rows += [
        [
            _title(time),
            str(time.calls),
            str(time.num_integer) if time.is_quantized else "float",
            f"{time.ms_integer:.3f}",
            f"{time.ms_float:.3f}",
            f"{time.times_as_fast:.2f}",
        ]
        for time in times
    ]
    return aligned(rows)


def slower_line(name: str, times: Iterable[LayerTime]) -> str:
    """Return a sentence about a quantized model that is slower than in float."""
    named = ", ".join(f"{_title(t)} ({t.lost_ms:+.2f} ms, {_longest(t)})" for t in costly(times))
    return f"{name} is slower than in float; these layers cost most: {named or 'none alone'}"


def rule_lines(name: str, times: Sequence[LayerTime], *, is_ours: bool) -> list[str]:
    """Return which layers to leave in float, as a config's setting if the names are a detector's.

    Args:
        name: Of the model.
        times: Of all its layers.
        is_ours: `launcher export` wrote it.
    """
    few = not_worthwhile(times)
    if not few:
        return [f"{name}: integers bring {WORTHWHILE}x or more in every layer"]
    lost = sum(t.lost_ms for t in few)
    lines = [
        f"{name}: integers bring less than {WORTHWHILE}x in {len(few)} of {len(times)} layers"
        f" ({lost:+.2f} ms in all)"
    ]
    if is_ours:
        lines += ["to leave them in float, calibrate with", rules_text(few)]
    return lines


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _ratio(own: Spread) -> str:
    return f"{own.median:.2f} ({own.low:.2f} to {own.high:.2f})"


def _title(layer: LayerTime) -> str:
    """Return a layer's name without that of the norm that was folded into it."""
    return layer.name.partition("+")[0]


def _longest(layer: LayerTime) -> str:
    """Return the operator in which most of a layer's time goes."""
    operator = max(layer.operators, key=lambda name: layer.operators[name])
    return f"{operator} {layer.operators[operator]:.2f} ms"
