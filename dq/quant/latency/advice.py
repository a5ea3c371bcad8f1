"""Find the layers that should stay in float, by measuring the exported file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from onnx import ModelProto

from dq.quant.latency.comparison import compare
from dq.quant.latency.engine import Engine
from dq.quant.latency.layers import with_layer_numbers
from dq.quant.latency.left_float import with_layers_in_float
from dq.quant.latency.paired import Spread
from dq.quant.latency.per_layer import LayerTime
from dq.quant.latency.terms import ALONE, Terms

# A smaller speed-up is not worth the rounding error (NVIDIA's Model-Optimizer has the same limit).
WORTHWHILE = 1.02


def not_worthwhile(times: Iterable[LayerTime]) -> list[LayerTime]:
    """Return the quantized layers whose speed-up is less than `WORTHWHILE`."""
    return [t for t in times if t.is_quantized and t.ms_integer and t.times_as_fast < WORTHWHILE]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The speed of a model if the layers that do not gain from integers stay in float.

    Attributes:
        layers: Quantized layers whose speed-up is less than `WORTHWHILE`.
        as_now: Time of the model divided by its time with these layers in float.
        num_integer: Number of layers that then run in integers.
        num_layers: Number of all layers.
    """

    layers: tuple[LayerTime, ...]
    as_now: Spread
    num_integer: int
    num_layers: int

    @property
    def is_faster(self) -> bool:
        """Whether the model is faster with these layers in float, in three of four rounds."""
        return self.as_now.low > 1


def advice(
    model: ModelProto, times: Iterable[LayerTime], engine: Engine, terms: Terms = ALONE
) -> Advice | None:
    """Time a model, and the same model with its slow layers in float, in turn.

    Args:
        model: As written by `dq.quant.export.qdq`.
        times: Result of `layer_times`.
        engine: Runs both.
        terms: Threads, rounds and sizes.

    Returns:
        None if integers are worthwhile in every layer.

    Raises:
        ValueError: The model cannot be timed.
    """
    few = not_worthwhile(times)
    if not few:
        return None
    other = with_layers_in_float(model, {t.name for t in few})
    found = compare({"now": model, "in float": other}, engine, terms)["in float"]
    if found.latency is None:  # Nothing is quantized any more.
        _, layers = with_layer_numbers(model)
        number = len(layers)
        return Advice(layers=tuple(few), as_now=found.as_first, num_integer=0, num_layers=number)
    return Advice(
        layers=tuple(few),
        as_now=found.as_first,
        num_integer=found.latency.num_integer,
        num_layers=found.latency.num_layers,
    )


def rules_text(times: Iterable[LayerTime]) -> str:
    """Return the Python code of a config that keeps these layers in float."""
    lines = [
        f"        dict(module={t.module!r}, quantize=False),  # {t.times_as_fast:.2f}x,"
        f" {t.lost_ms:+.3f} ms"
        for t in times
    ]
    return "\n".join(["quant = dict(", "    rules=[", *lines, "    ],", ")"])
