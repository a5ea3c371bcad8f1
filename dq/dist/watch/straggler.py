"""Find the slowest rank and the phase in which it is slow.

In a step that ends with a gradient exchange every rank takes as long as the slowest, so the wall
time of a step does not show which rank that is. Two other times do: the wall time of phases without
a collective (waiting for data, preparing a step), and the processor time of this process for work
between collectives, because it does not count waiting. On a GPU processor time says nothing about
kernels and is not counted.
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
        rank: The slowest rank.
        seconds: Its time since the last report.
        others: Median of the other ranks' times.
    """

    phase: str
    rank: int
    seconds: float
    others: float

    @property
    def ratio(self) -> float:
        """How many times as long as the others it took; infinite if they needed no time."""
        return self.seconds / self.others if self.others > 0 else float("inf")


class PhaseClock:
    """Add up the time of each phase of a rank's work; phases must not overlap."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        # These are never reset.
        self.totals: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the body's wall time; it must contain no collective.

        Args:
            name: A phase that some rank did not enter between two reports is not reported.
        """
        began = time.perf_counter()
        try:
            yield
        finally:
            self._add(name, time.perf_counter() - began)

    @contextmanager
    def work(self, name: str, device: torch.device) -> Iterator[None]:
        """Count the processor time of all threads in the body, which may contain collectives.

        Args:
            name: As for `phase`.
            device: Nothing is counted on devices other than the CPU.
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

        Every rank must call it, at the same step; one small collective, none in a single process.
        """
        own, self.seconds = self.seconds, {}
        if collectives.world_size() == 1:
            return []
        # By name, because ranks may have entered different phases.
        everywhere: list[dict[str, float]] = collectives.all_gather_objects(own)
        names = sorted(set.intersection(*(set(found) for found in everywhere)))
        return [_slowest(name, [found[name] for found in everywhere]) for name in names]


def _slowest(name: str, times: Sequence[float]) -> Slow:
    rank = max(range(len(times)), key=lambda r: times[r])
    others = statistics.median(t for r, t in enumerate(times) if r != rank)
    return Slow(phase=name, rank=rank, seconds=times[rank], others=others)


def slow_rank_message(slow: Slow, *, above: float, least_s: float = 0.5) -> str | None:
    """Return a message that names a slow rank, or None if it is not slow enough.

    Args:
        slow: From a report.
        above: Smallest ratio that is reported.
        least_s: Smallest difference to the others that is reported, in seconds.
    """
    if slow.ratio < above or slow.seconds - slow.others < least_s:
        return None
    return (
        f"rank {slow.rank} is slow at {slow.phase}: {slow.seconds:.1f} s since the last report, the"
        f" others {slow.others:.1f} s"
    )
