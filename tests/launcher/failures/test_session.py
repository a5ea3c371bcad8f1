"""How a command ends when an error and a signal come together."""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import launcher.session
from dq.dist.errors.lost import LostRankError
from dq.dist.watch.signals import Stopped
from launcher.cli import parse
from launcher.session import session

pytestmark = pytest.mark.cpu


@pytest.fixture
def arguments(config: Path, tmp_path: Path) -> argparse.Namespace:
    return parse(["train", str(config), "--work-dir", str(tmp_path), "--device", "cpu"])


@pytest.fixture
def signalled_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report of an error during which SIGTERM arrives.

    srun sends it to the other ranks as soon as one has ended.
    """
    report = launcher.session._report

    def slow(error: BaseException, *given: Any, **named: Any) -> None:
        if not isinstance(error, Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        report(error, *given, **named)

    monkeypatch.setattr(launcher.session, "_report", slow)


@pytest.mark.usefixtures("signalled_report")
def test_an_error_is_not_replaced_by_a_signal_that_comes_while_it_is_reported(
    arguments: argparse.Namespace, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match="of its own"), session(arguments):
        raise RuntimeError("of its own")
    assert "of its own" in capfd.readouterr().err


@pytest.mark.usefixtures("signalled_report")
def test_a_rank_lost_in_a_stage_without_steps_may_have_been_stopped(
    arguments: argparse.Namespace, capfd: pytest.CaptureFixture[str]
) -> None:
    """All ranks leave such a stage at once, so the first to leave looks lost to the others."""
    with pytest.raises(Stopped), session(arguments):
        raise LostRankError("rank 1 was lost")
    assert "error" not in capfd.readouterr().err


@pytest.mark.usefixtures("signalled_report")
def test_a_rank_lost_between_steps_was_not_stopped(arguments: argparse.Namespace) -> None:
    with pytest.raises(LostRankError), session(arguments) as place:  # noqa: PT012
        place.signals.settle()  # As `StopSignals.deferred` does.
        raise LostRankError("rank 1 was lost")


def test_a_signal_after_the_work_is_done_does_not_stop_the_command(
    arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B may take long to receive the last values."""
    closed = []

    class Slow:
        def close(self, hurry_s: float | None) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            closed.append(hurry_s)

    with session(arguments) as place:
        place._relays.append(Slow())  # type: ignore[arg-type]
    assert closed == [None]
