"""Signals that ask a job to stop: in the rank, in forked processes and in loader processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from dq.dist.watch.agreement import Agreement
from dq.dist.watch.signals import STOP, Stopped, ignore_first_sigterm, stop_signals

HANDLED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)


@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_raises_outside_steps(number: signal.Signals) -> None:
    with pytest.raises(Stopped, match=number.name), stop_signals():  # noqa: PT012
        os.kill(os.getpid(), number)
        time.sleep(5)


def test_inside_steps_a_signal_becomes_a_request_and_raises_at_the_end() -> None:
    agreement, steps = Agreement(), []
    with pytest.raises(Stopped, match="SIGTERM"), stop_signals() as signals:  # noqa: PT012
        with signals.deferred(agreement):
            os.kill(os.getpid(), signal.SIGTERM)
            steps.append(dict(agreement.due(1)))
        pytest.fail("a job that was asked to stop went on")
    assert steps == [{STOP: "SIGTERM"}]


def test_at_once_raises_also_inside_steps() -> None:
    agreement = Agreement()
    with stop_signals() as signals, contextlib.suppress(Stopped), signals.deferred(agreement):
        with pytest.raises(Stopped), signals.at_once():  # noqa: PT012
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(5)
        with pytest.raises(Stopped), signals.at_once():
            pytest.fail("began after the signal")


def test_an_error_between_steps_is_not_replaced_by_a_signal_before_or_after_it() -> None:
    """A rank is lost in a step, and srun asks this one to stop because of that."""
    with stop_signals() as signals:
        with pytest.raises(ValueError, match="lost"), signals.deferred(Agreement()):  # noqa: PT012
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            raise ValueError("lost")
        assert signals.settled
    with stop_signals() as signals:
        with pytest.raises(ValueError, match="lost"), signals.deferred(Agreement()):
            raise ValueError("lost")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)  # Would raise here.
        assert signals.first is not None


def test_an_error_of_an_evaluation_leaves_open_whether_it_follows_from_a_stop() -> None:
    with stop_signals() as signals:
        deferred = signals.deferred(Agreement())
        with pytest.raises(ValueError, match="lost"), deferred, signals.at_once():
            raise ValueError("lost")
        assert not signals.settled
        with pytest.raises(Stopped):  # noqa: PT012
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)


def test_a_settled_outcome_stays_until_a_second_request(capfd: pytest.CaptureFixture[str]) -> None:
    with stop_signals() as signals:
        signals.settle()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
    assert capfd.readouterr().err.startswith("SIGINT: ending already; a second signal ends this")


def test_the_former_handlers_are_restored() -> None:
    former = [signal.getsignal(number) for number in HANDLED]
    with stop_signals():
        assert signal.getsignal(signal.SIGTERM) != former[0]
    assert [signal.getsignal(number) for number in HANDLED] == former


def test_a_hangup_that_is_ignored_stays_so() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # As nohup does.
    try:
        with stop_signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)
            assert signals.first is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


def test_except_exception_does_not_catch_a_stop_request() -> None:
    def tolerant() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except Exception:
            pytest.fail("a stop request was taken for an error")

    with pytest.raises(Stopped), stop_signals():
        tolerant()


TWICE = """
import os, signal, sys, time
from dq.dist.watch.agreement import Agreement
from dq.dist.watch.signals import stop_signals
with stop_signals() as signals, signals.deferred(Agreement()):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # the same request: Slurm and torchrun both send it
    time.sleep(1.2)
    print("still here", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
"""


def test_a_second_request_ends_the_process_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "still here\n", done.stderr
    assert done.returncode == 128 + signal.SIGTERM


CLOSED = """
import os, signal
from dq.dist.watch.agreement import Agreement
from dq.dist.watch.signals import Stopped, stop_signals
agreement = Agreement()
try:
    with stop_signals() as signals, signals.deferred(agreement):
        os.close(2)
        os.kill(os.getpid(), signal.SIGHUP)
        print(dict(agreement.due(1)), flush=True)
except Stopped:
    pass
"""


def test_a_closed_terminal_is_a_stop_request() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLOSED], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "{'stop': 'SIGHUP'}\n", done.stderr
    assert done.returncode == 0


def test_a_forked_process_is_ended_by_its_parents_signal() -> None:
    with stop_signals() as signals:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        time.sleep(0.2)
        child.terminate()
        child.join(10)
        assert child.exitcode == -signal.SIGTERM
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(abs, [-1, -2]) == [1, 2]
        assert signals.first is None


def loader(ready: multiprocessing.synchronize.Event) -> None:
    ignore_first_sigterm()
    ready.set()
    time.sleep(60)


def test_a_loader_process_outlives_the_first_request_only() -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    with stop_signals():
        child = context.Process(target=loader, args=(ready,))
        child.start()
        assert ready.wait(10)
        for number in HANDLED:
            os.kill(child.pid or 0, number)
            time.sleep(0.1)
        child.join(0.3)
        assert child.exitcode is None
        child.terminate()
        child.join(10)
        assert child.exitcode == -signal.SIGTERM
