"""Format measured times as lines to print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dq.counted import counted, form
from dq.quant.latency.advice import WORTHWHILE, Advice, rules_text
from dq.quant.latency.comparison import Timed
from dq.quant.latency.paired import Spread
from dq.quant.latency.per_layer import LayerTime, costly

MIB = 2**20


def table(timed: Mapping[str, Timed]) -> list[str]:
    """Return a line for each model: medians, and in brackets the quartiles of ratios."""
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
            f"{time.num_integer}{'' if time.is_quantized else ' of float weights'}",
            f"{time.ms_integer:.3f}",
            f"{time.ms_float:.3f}",
            f"{time.times_as_fast:.2f}" if time.ms_integer else "with another",
        ]
        for time in times
    ]
    return aligned(rows)


def slower_line(name: str, times: Iterable[LayerTime]) -> str:
    """Return a sentence with the costliest layers of a model that is slower than in float."""
    named = ", ".join(f"{_title(t)} ({t.lost_ms:+.2f} ms, {_longest(t)})" for t in costly(times))
    return f"{name} is slower than in float; these layers cost most: {named or 'none alone'}"


def advice_lines(name: str, found: Advice | None) -> list[str]:
    """Return lines about the layers that do not gain, with a rule if it makes the model faster.

    Args:
        name: Name of the model.
        found: Result of `dq.quant.latency.advice.advice`.
    """
    if found is None:
        return [f"{name}: every layer is at least {WORTHWHILE}x as fast in integers"]
    lines = [
        f"{name}: {counted(len(found.layers), 'layer[s] [is|are]')} less than {WORTHWHILE}x as"
        f" fast in integers; with {form(len(found.layers), '[this|these]')} in float the model"
        f" is {_ratio(found.as_now)} times as fast as now, with {found.num_integer} of"
        f" {counted(found.num_layers, 'layer[s]')} in integers"
    ]
    if found.is_faster:
        return [*lines, "calibrate with", rules_text(found.layers)]
    lines += [f"  {_title(t)}  {t.times_as_fast:.2f}x  {t.lost_ms:+.3f} ms" for t in found.layers]
    return [*lines, "so keep them in integers"]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with aligned columns: the first to the left, the others to the right."""
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
    """Return a layer's name without the name of the norm that was folded into it."""
    return layer.name.partition("+")[0]


def _longest(layer: LayerTime) -> str:
    """Return the operator that takes most of a layer's time, with the time."""
    operator = max(layer.operators, key=lambda name: layer.operators[name])
    return f"{operator} {layer.operators[operator]:.2f} ms"
