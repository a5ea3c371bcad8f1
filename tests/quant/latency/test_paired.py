"""Functions are timed in turn: order and number of rounds, ratios over rounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dq.quant.latency import paired
from dq.quant.latency.paired import FEWEST_ROUNDS, WARM_UP, Spread, interleaved, ratio, spread


class Clock:
    """A clock that advances only while a function runs, and faster with time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slow = 1.0
        self.calls: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def takes(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.calls.append(name)
            self.now += self.slow * seconds

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(paired, "time", clock)
    return clock


def test_every_second_round_has_the_reverse_order(clock: Clock) -> None:
    runs = [clock.takes(name, 1.0) for name in "abc"]
    times = interleaved(runs, rounds=4)
    assert times == [[1000.0] * 4] * 3
    warm = 3 * WARM_UP
    assert "".join(clock.calls[warm:]) == "abccba" * 2


def test_short_functions_run_many_times_in_a_round(clock: Clock) -> None:
    times = interleaved([clock.takes("a", 2**-9), clock.takes("b", 2**-7)], rounds=5)
    assert times == [[1000 * 2**-9] * 5, [1000 * 2**-7] * 5]
    assert clock.calls.count("a") - WARM_UP == 5 * 11  # 20 ms and more.
    assert clock.calls.count("b") - WARM_UP == 5 * 3


def test_no_round_begins_after_the_limit_but_the_fewest_do(clock: Clock) -> None:
    runs = [clock.takes("a", 1.0)]
    assert len(interleaved(runs, rounds=100, limit_s=20.5)[0]) == 21 - WARM_UP
    assert len(interleaved(runs, rounds=100, limit_s=0.0)[0]) == FEWEST_ROUNDS
    assert len(interleaved(runs, rounds=3, limit_s=0.0)[0]) == 3


def test_load_that_slows_both_does_not_change_the_ratio(clock: Clock) -> None:
    slow, fast = clock.takes("slow", 3.0), clock.takes("fast", 1.0)

    def loaded() -> None:
        clock.slow = 1.0 + clock.now % 7
        slow()

    times = interleaved([loaded, fast], rounds=8)
    forward = [a / b for a, b in zip(*times, strict=True)][::2]
    assert forward == pytest.approx([3.0] * 4)
    assert spread(times[0]).high > 1.5 * spread(times[0]).low


def test_quartiles() -> None:
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(low=2.0, median=3.0, high=4.0)
    assert spread([7.0]) == Spread(low=7.0, median=7.0, high=7.0)
    assert ratio([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == Spread(low=1.5, median=2.0, high=2.5)
