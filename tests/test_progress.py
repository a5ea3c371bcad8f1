"""Long work says how much is done and how long the rest takes; short work says nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

import pytest

import dq.progress
from dq.progress import BARS, DRAWN_EVERY_S, Progress, progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds; a test changes it."""
    now = [100.0]
    monkeypatch.setattr(dq.progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_come_every_ten_seconds(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for _ in progress(range(10), "AdaRound", "layer[s]"):
            clock[0] += 4
    assert caplog.messages == [
        "AdaRound: 3 of 10 layers, 28 s to go",
        "AdaRound: 6 of 10 layers, 16 s to go",
        "AdaRound: 9 of 10 layers, 4 s to go",
    ]


def test_without_a_total_there_is_no_time(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        for _ in progress(iter("ab"), "calibration", "batch[es]"):
            clock[0] += 20
    assert caplog.messages == ["calibration: 1 batch", "calibration: 2 batches"]


@pytest.mark.parametrize(
    ("total", "text"), [(2, "11 s"), (11, "2 min"), (20, "3 min"), (1000, "3.1 h")]
)
def test_long_times_are_minutes_and_hours(
    clock: list[float], caplog: pytest.LogCaptureFixture, total: int, text: str
) -> None:
    shown = Progress("x", total, "layer[s]")
    clock[0] += 11
    with caplog.at_level(logging.INFO):
        shown.advance()
    assert caplog.messages == [f"x: 1 of {total} layers, {text} to go"]


def test_short_work_says_nothing(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert list(progress("abc", "x", "letters")) == list("abc")
    assert not caplog.messages


class Bar(logging.Handler):
    """The bar of a terminal; None if there is none."""

    piece: object = None

    def emit(self, record: logging.LogRecord) -> None:
        self.piece = record.piece  # type: ignore[attr-defined]


@pytest.fixture
def bar() -> Iterator[Bar]:
    shown, level = Bar(), BARS.level
    BARS.addHandler(shown)
    BARS.setLevel(logging.DEBUG)
    yield shown
    BARS.removeHandler(shown)
    BARS.setLevel(level)


@pytest.mark.parametrize("end", ["all", "break", "error"])
@pytest.mark.parametrize("kind", [range, lambda n: iter(range(n))])
def test_the_bar_is_removed_however_the_work_ends(
    kind: Callable[[int], Iterable[int]], end: str, clock: list[float], bar: Bar
) -> None:
    def work() -> None:
        for item in progress(kind(4), "x", "layer[s]"):
            clock[0] += 2 * DRAWN_EVERY_S
            if item == 2:
                assert bar.piece is not None
                if end == "break":
                    break
                if end == "error":
                    raise OSError("no space")

    if end == "error":
        with pytest.raises(OSError, match="no space"):
            work()
    else:
        work()
    assert bar.piece is None


@pytest.mark.parametrize("fails", [True, False])
def test_a_block_removes_the_bar_before_all_is_done(
    fails: bool, clock: list[float], bar: Bar
) -> None:
    def work() -> None:
        with Progress("x", 10, "layer[s]") as shown:
            clock[0] += 1
            shown.advance()
            assert bar.piece is not None
            if fails:
                raise OSError("no space")

    if fails:
        with pytest.raises(OSError, match="no space"):
            work()
    else:
        work()
    assert bar.piece is None
