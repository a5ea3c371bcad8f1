"""Long work says how much is done and how long the rest takes; short work says nothing."""

from __future__ import annotations

import logging

import pytest

import dq.progress
from dq.progress import Progress, progress


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
