"""Which rank is the slowest, and at what.

In a step that ends with an exchange of gradients every rank takes as long as the slowest, so wall
time names nobody. What differs is wall time in phases without a collective (waiting for data,
preparing a step), and for work between collectives the processor time of this process, in which it
does not wait. On a GPU the host's processor time says nothing of the kernels, and is not counted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from dq.dist.exchange import collectives


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """The slowest rank in one phase.

    Attributes:
        phase: Its name.
        rank: Who.
        seconds: Its time since the last report.
        others: Median of all other ranks' times.
    """

    phase: str
    rank: int
    seconds: float
    others: float

    @property
    def ratio(self) -> float:
        """How many times as long as the others; infinite where they needed no time."""
        return self.seconds / self.others if self.others > 0 else float("inf")


class PhaseClock:
    """Add up the time of each phase of a rank's work; phases must not overlap."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        # These are never begun anew.
        self.totals: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the body's wall time; it must hold no collective.

        Args:
            name: A phase that some rank has not entered between two reports is not in the report.
        """
        began = time.perf_counter()
        try:
            yield
        finally:
            self._add(name, time.perf_counter() - began)

    @contextmanager
    def work(self, name: str, device: torch.device) -> Iterator[None]:
        """Count the processor time of all threads in the body, which may hold collectives.

        Args:
            name: As for `phase`.
            device: On another than the CPU nothing is counted.
        """
        began = time.process_time()
        try:
            yield
        finally:
            if device.type == "cpu":
                self._add(name, time.process_time() - began)

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.totals[name] = self.totals.get(name, 0.0) + seconds

    def report(self) -> list[Slow]:
        """Return the slowest rank of each phase since the last report, equal on all ranks.

        Every rank must call it, at the same step; one small collective. Alone there is none.
        """
        own, self.seconds = self.seconds, {}
        if collectives.world_size() == 1:
            return []
        # By name, for a rank may have been in no phase, or in one more.
        everywhere: list[dict[str, float]] = collectives.all_gather_objects(own)
        names = sorted(set.intersection(*(set(found) for found in everywhere)))
        return [_slowest(name, [found[name] for found in everywhere]) for name in names]


def _slowest(name: str, times: Sequence[float]) -> Slow:
    rank = max(range(len(times)), key=lambda r: times[r])
    others = statistics.median(t for r, t in enumerate(times) if r != rank)
    return Slow(phase=name, rank=rank, seconds=times[rank], others=others)


def line(slow: Slow, *, above: float, least_s: float = 0.5) -> str | None:
    """Return the sentence that names a slow rank, None where it is not worth one.

    Args:
        slow: Of a report.
        above: The ratio from which on it is.
        least_s: Seconds behind the others from which on it is.
    """
    if slow.ratio < above or slow.seconds - slow.others < least_s:
        return None
    return (
        f"rank {slow.rank} is slow at {slow.phase}: {slow.seconds:.1f} s since the last report, the"
        f" others {slow.others:.1f} s"
    )
