"""The order in which a search tries candidates, from cheap to expensive, until a limit is met.

First, for an engine that zero points slow down, one or two ways without them are tried. Then
everything stays narrow: several ways to find ranges, then a scale for each channel where channels
differ most, then learned rounding (AdaRound, then block reconstruction). If none of them meets the
limit, the most sensitive quantizers are raised to 16 bits: 1, 2, 4, 8 and so on, and then numbers
between the last that failed and the first that met the limit. Which candidates are tried
depends on the measured values alone, so a search on several ranks finds what one rank finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dq.quant.ptq.settings import Repair
from dq.quant.recipes.recipe import Recipe
from dq.quant.search.candidate import (
    Candidate,
    first_candidates,
    with_channel_scales,
    with_raised,
    with_reconstruction,
    with_rounding,
    without_zero_points,
)

Item = TypeVar("Item")
# Number of candidates that are measured together, because several ranks share them.
_TOGETHER = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A candidate with its result.

    Attributes:
        candidate: What was tried.
        value: Its metric, 0 to 1; larger is better.
    """

    candidate: Candidate
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a search.

    Attributes:
        tried: All candidates, in the order in which they were tried.
        chosen: The cheapest that meets the limit; the best if none does.
        meets_limit: Whether it does.
        ended_early: Whether the time limit ended the search.
    """

    tried: Sequence[Tried]
    chosen: Tried
    meets_limit: bool
    ended_early: bool


Measure = Callable[[Sequence[Candidate]], Sequence[float]]


class TimeUpError(Exception):
    """No time is left for more candidates."""


class Search:
    """One search; `run` returns its outcome.

    Args:
        least: The value to reach, 0 to 1.
        measure: Returns the value of each candidate. Raises `TimeUpError` to end the search.
        rank: Returns the names of a candidate's quantizers that may be raised, the most sensitive
            first.
        max_raised: Largest number of quantizers to raise.
        together: Number of candidates given to ``measure`` at once. `TimeUpError` loses only the
            results of the group that is being measured.
    """

    def __init__(
        self,
        *,
        least: float,
        measure: Measure,
        rank: Callable[[Candidate], Sequence[str]],
        max_raised: int,
        together: int = 1,
    ) -> None:
        self.least, self.max_raised, self.together = least, max_raised, together
        self._measure, self._rank = measure, rank
        self.tried: list[Tried] = []

    def run(self, recipe: Recipe, repair: Repair) -> Outcome:
        """Search from a config's recipe and repairs.

        Raises:
            TimeUpError: There was no time for any candidate.
        """
        ended_early = False
        try:
            self._climb(recipe, repair)
        except TimeUpError:
            if not self.tried:
                raise
            ended_early = True
        chosen = self._chosen()
        return Outcome(
            tried=tuple(self.tried),
            chosen=chosen,
            meets_limit=chosen.value >= self.least,
            ended_early=ended_early,
        )

    def _climb(self, recipe: Recipe, repair: Repair) -> None:
        if self._try(without_zero_points(recipe, repair)):
            return
        if self._try(first_candidates(recipe, repair)):
            return
        if self._try(with_channel_scales(self._best())):
            return
        for learned in (with_rounding, with_reconstruction):
            candidate = learned(self._best())
            if candidate is not None and self._try([candidate]):
                return
        best = self._best()
        ranking = self._rank(best)[: self.max_raised]
        failed = 0
        for counts in batched(_steps(len(ranking)), _TOGETHER):
            met = self._try_raised(best, ranking, counts)
            if met is not None:
                self._narrow(best, ranking, max([failed, *(c for c in counts if c < met)]), met)
                return
            failed = counts[-1]

    def _narrow(self, best: Candidate, ranking: Sequence[str], failed: int, met: int) -> None:
        """Try numbers between one that failed and one that met the limit, until none is left."""
        while met - failed > 1:
            step = max(1, (met - failed) // 4)
            counts = sorted({failed + step, (failed + met) // 2, met - step} - {failed, met})
            found = self._try_raised(best, ranking, counts)
            failed = max([failed, *(c for c in counts if found is None or c < found)])
            met = met if found is None else found

    def _try_raised(
        self, best: Candidate, ranking: Sequence[str], counts: Sequence[int]
    ) -> int | None:
        """Return the smallest of these numbers of raised quantizers that meets the limit."""
        if not counts:
            return None
        values = self._values([with_raised(best, ranking, count) for count in counts])
        met = [c for c, value in zip(counts, values, strict=True) if value >= self.least]
        return min(met, default=None)

    def _try(self, candidates: Sequence[Candidate]) -> bool:
        return any(value >= self.least for value in self._values(candidates))

    def _values(self, candidates: Sequence[Candidate]) -> Sequence[float]:
        values: list[float] = []
        for group in batched(candidates, self.together):
            found = self._measure(group)
            for candidate, value in zip(group, found, strict=True):
                self.tried.append(Tried(candidate=candidate, value=value))
            values.extend(found)
        return values

    def _best(self) -> Candidate:
        """Return the candidate with the best value; of equal ones the first."""
        return max(self.tried, key=lambda tried: tried.value).candidate

    def _chosen(self) -> Tried:
        met = [tried for tried in self.tried if tried.value >= self.least]
        if met:
            return min(met, key=lambda tried: (tried.candidate.cost, -tried.value))
        best = max(tried.value for tried in self.tried)
        return min((t for t in self.tried if t.value == best), key=lambda t: t.candidate.cost)


def _steps(most: int) -> list[int]:
    """Return 1, 2, 4, 8, ... below ``most``, and ``most``."""
    doubled = [2**power for power in range(most.bit_length()) if 2**power < most]
    return [*doubled, most] if most else []


def batched(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Yield the items in groups of ``size``; the last may be smaller."""
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def pareto_front(tried: Sequence[Tried]) -> list[Tried]:
    """Return the candidates that no other beats in both value and cost.

    Returns:
        The cheapest first. Of two equal ones the first that was tried.
    """
    front: list[Tried] = []
    for one in sorted(tried, key=lambda t: (t.candidate.cost, -t.value)):
        if not front or one.value > front[-1].value:
            front.append(one)
    return front
