"""Time several functions in turn, in one process and over many rounds, so that times compare."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# A short function is called repeatedly for this long, because a single call is too inexact.
BLOCK_S = 0.02
# Fewer rounds say nothing about the spread.
FEWEST_ROUNDS = 5
# Calls before the timed ones, to fill caches.
WARM_UP = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The quartiles of some values.

    Attributes:
        low: First quartile.
        median: Second quartile.
        high: Third quartile.
    """

    low: float
    median: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return the quartiles of one or more values."""
    if len(values) == 1:
        return Spread(low=values[0], median=values[0], high=values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(low=low, median=median, high=high)


def ratio(one: Sequence[float], other: Sequence[float]) -> Spread:
    """Return the quartiles of ``one / other`` over the rounds.

    Other load slows down both values of a round, so ratios vary less than times.
    """
    return spread([a / b for a, b in zip(one, other, strict=True)])


def interleaved(
    runs: Sequence[Callable[[], object]],
    *,
    rounds: int,
    fewest: int = FEWEST_ROUNDS,
    limit_s: float = math.inf,
) -> list[list[float]]:
    """Return the time of each function in each round, in milliseconds.

    In each round every function runs once, or several times if it is short. Every second round has
    the reverse order, so that a function does not always run after the same other one.

    Args:
        runs: The functions.
        rounds: Number of rounds; fewer if the time limit is reached.
        fewest: Minimum number of rounds before the limit counts.
        limit_s: Seconds after which no further round starts.
    """
    began = time.perf_counter()
    num_calls = [_calls_of_block(run) for run in runs]
    times: list[list[float]] = [[] for _ in runs]
    for number in range(max(rounds, 1)):
        if number >= fewest and time.perf_counter() - began > limit_s:
            break
        places = list(range(len(runs)))
        for place in reversed(places) if number % 2 else places:
            times[place].append(1000 * _seconds(runs[place], num_calls[place]))
    return times


def _calls_of_block(run: Callable[[], object]) -> int:
    for _ in range(WARM_UP - 1):
        run()
    return max(1, min(100, math.ceil(BLOCK_S / max(1e-9, _seconds(run, 1)))))


def _seconds(run: Callable[[], object], num_calls: int) -> float:
    """Return the mean time of a call in seconds, over some calls in a row."""
    began = time.perf_counter()
    for _ in range(num_calls):
        run()
    return (time.perf_counter() - began) / num_calls
