"""Signals that ask a job to stop: from Slurm and torchrun, Ctrl-C, and a closed terminal."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from dq.dist.watch.agreement import Agreement

log = logging.getLogger(__name__)
STOP = "stop"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
# Slurm signals every process, and torchrun forwards its own signal: that is one request.
SAME_REQUEST_S = 1.0


class Stopped(BaseException):
    """A signal ended the job; everything worth keeping has been saved.

    Like KeyboardInterrupt it is not an Exception: code that continues after any error must not
    continue after this.
    """


class StopSignals:
    """Turn the first signal into an orderly stop; see `stop_signals`.

    Attributes:
        first: Time and number of the first signal, or None.
        settled: Whether the outcome is known, see `settle`.
    """

    def __init__(self) -> None:
        self.first: tuple[float, str] | None = None
        self.settled = False
        self._agreement: Agreement | None = None
        self._aside_error: Exception | None = None

    @contextlib.contextmanager
    def deferred(self, agreement: Agreement) -> Iterator[None]:
        """Let a signal in the body ask all ranks to stop after a step instead of raising `Stopped`.

        Args:
            agreement: The body must check it; the request has the name ``stop``.

        Raises:
            Stopped: At the end, if a signal came too late for a last step. It does not replace an
                error of the body: the ranks stop together after a step, so a stop does not explain
                a lost rank. For example, srun sends SIGTERM to the other ranks when one has died.
        """
        self._agreement = agreement
        try:
            yield
        except Exception as error:
            if error is not self._aside_error:
                self.settle()
            raise
        finally:
            self._agreement = None
        self.raise_if_stopped()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal raise `Stopped` in the body, also inside `deferred`.

        For work that takes long, has no steps and leaves nothing worth saving.
        """
        agreement, self._agreement = self._agreement, None
        try:
            self.raise_if_stopped()
            yield
        except Exception as error:
            self._aside_error = error
            raise
        finally:
            self._agreement = agreement

    def raise_if_stopped(self) -> None:
        """Raise `Stopped` if a signal has come."""
        if self.first is not None:
            raise Stopped(self.first[1])

    def settle(self) -> None:
        """Let the first signal change nothing from now on, because the outcome is known.

        The command has ended by an error, which is being reported, or has done its work. Only a
        second signal ends the process.
        """
        self.settled = True

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        name, now = signal.Signals(number).name, time.monotonic()
        if self.first is not None:
            if now - self.first[0] > SAME_REQUEST_S:
                _end_at_once(number)
            return
        self.first = (now, name)
        if self.settled:
            _say(f"{name}: ending already; a second signal ends this process at once")
            return
        if self._agreement is None:
            raise Stopped(name)
        self._agreement.ask(STOP, name)
        _say(f"{name}: stopping after this step")


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Handle stop signals in the body; the former handlers are restored after it.

    They are SIGTERM, SIGUSR1, SIGUSR2, SIGINT and SIGHUP. A SIGHUP that is ignored stays ignored:
    that is the purpose of ``nohup``. torchrun under nohup still handles SIGHUP and forwards it to
    its ranks. Outside `StopSignals.deferred` the first signal raises `Stopped` in the main thread.
    A signal more than a second after the first ends the process at once with code 128 + its number.
    In other threads, where Python allows no handlers, nothing is done.
    """
    signals = StopSignals()
    _restore_signals_in_forks()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    handled = [n for n in SIGNALS if not (n == signal.SIGHUP and ignored)]
    former = {number: signal.signal(number, signals.handle) for number in handled}
    try:
        yield signals
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@functools.cache
def _restore_signals_in_forks() -> None:
    """Give processes that are forked from now on the default signal handlers.

    A parent ends them with SIGTERM, as multiprocessing's pools do. A Python handler would run only
    when the interpreter does, which never happens in a process that waits for a lock.
    """

    def restore() -> None:
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if isinstance(getattr(handler, "__self__", None), StopSignals):
                usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(number, usual)

    os.register_at_fork(after_in_child=restore)


def ignore_first_sigterm() -> None:
    """Let a loader process survive the first SIGTERM; call it in that process when it starts.

    Slurm signals every process of a job, and the rank needs its loader until the step is finished.
    The second SIGTERM ends it, because that is how torch and multiprocessing end a stuck process.
    """
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)

    def once(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, once)


def _say(line: str) -> None:
    """Print a line on stderr from a signal handler."""
    with contextlib.suppress(OSError):  # The terminal may be closed.
        os.write(2, f"{line}\n".encode())


def _end_at_once(number: int) -> None:
    for handler in logging.getLogger().handlers:
        with contextlib.suppress(Exception):
            handler.flush()
    os._exit(128 + number)
