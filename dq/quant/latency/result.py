"""The speed of a quantized model compared with its float twin."""

from __future__ import annotations

from dataclasses import dataclass

from dq.counted import counted
from dq.quant.latency.paired import Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """The speed of a quantized model compared with its float twin.

    Attributes:
        engine: Name and version.
        threads: Number of threads.
        rounds: Number of rounds; in each both ran.
        widths: Bit widths of the integers: int8, W4A8.
        num_integer: Number of layers that run in integers.
        num_layers: Number of all layers.
        ms_integer: Median time of one run in milliseconds.
        ms_float: The same of the float twin.
        times_as_fast: Time in float divided by the time in integers, over the rounds.
        bytes_integer: Size of the model in bytes.
        bytes_float: Size of its float twin in bytes.
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
        """Whether the quantized model is slower than its float twin, by the median."""
        return self.times_as_fast.median < 1

    def sentence(self) -> str:
        """Return the result in one line."""
        faster = self.times_as_fast.median
        threads = counted(self.threads, "thread[s]")
        said = f"{self.widths} {faster:.2f} times as fast as float"
        if self.is_slower:
            said = f"{self.widths} is SLOWER than float, {faster:.2f} times as fast"
        return (
            f"{said}: {self.ms_integer:.1f} ms against {self.ms_float:.1f} ms, {threads},"
            f" {self.num_integer} of {counted(self.num_layers, 'layer[s]')} in integers"
            f" ({self.engine})"
        )
