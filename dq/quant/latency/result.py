"""A quantized model's speed beside that of its float twin."""

from __future__ import annotations

from dataclasses import dataclass

from dq.quant.latency.paired import Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """A quantized model's speed beside that of its float twin.

    Attributes:
        engine: Name and version.
        threads: Of one run.
        rounds: In each both ran.
        widths: Of the integers: int8, W4A8.
        num_integer: Layers that run in integers.
        num_layers: All layers.
        ms_integer: Median milliseconds of one run.
        ms_float: Those of the float twin.
        times_as_fast: Float milliseconds by quantized ones, of each round.
        bytes_integer: Size of the model.
        bytes_float: Size of its float twin.
    """

    engine: str
    threads: int
    rounds: int
    widths: str
    num_integer: int
    num_layers: int
    ms_integer: float
    ms_float: float
    times_as_fast: Spread
    bytes_integer: int
    bytes_float: int

    @property
    def is_slower(self) -> bool:
        """Whether the quantized model is slower than in float, in half of the rounds or more."""
        return self.times_as_fast.median < 1

    def sentence(self) -> str:
        """Return the result in one line."""
        faster = self.times_as_fast.median
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        said = f"{self.widths} {faster:.2f} times as fast as float"
        if self.is_slower:
            said = f"{self.widths} is SLOWER than float, {faster:.2f} times as fast"
        return (
            f"{said}: {self.ms_integer:.1f} ms against {self.ms_float:.1f} ms, {threads},"
            f" {self.num_integer} of {self.num_layers} layers in integers ({self.engine})"
        )
