"""A watchdog for a job that hangs: every rank writes its stacks, and finally ends."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from dq.dist.exchange import collectives
from dq.dist.rendezvous.sequence import open_meeting

log = logging.getLogger(__name__)
_ALARM = "alarm"


class Watchdog:
    """Notice when no step finishes any more; see `watchdog`.

    Args:
        quiet_s: Seconds without a sign of life until all ranks write their stacks.
        limit_s: Seconds without a sign of life until this process ends.
        file: Where stacks are written; it stays open.
    """

    def __init__(self, quiet_s: float, limit_s: float, file: TextIO) -> None:
        self.quiet_s, self.limit_s, self.file = quiet_s, limit_s, file
        self._what, self._heard, self._pauses, self._alarms = "", time.monotonic(), 1, 0
        self._ended = threading.Event()

    def alive(self, what: str) -> None:
        """Give a sign of life.

        Args:
            what: What has just finished, such as ``step 12``.
        """
        self._what, self._heard = what, time.monotonic()
        if self._pauses == 0:
            self._arm()

    @contextlib.contextmanager
    def watching(self, what: str) -> Iterator[None]:
        """Expect signs of life in the body; outside it none are expected.

        Args:
            what: What is about to start.
        """
        self._pauses -= 1
        self.alive(what)
        try:
            yield
        finally:
            self._pauses += 1
            self._disarm()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Expect no signs of life in the body, where a rank may wait for long."""
        self._pauses += 1
        self._disarm()
        try:
            yield
        finally:
            self._pauses -= 1
            self.alive(self._what)

    def watch(self, store: Store | None) -> None:
        """Check the clock and the alarms of other ranks until `end`; runs in a thread."""
        said_at = -1.0
        pause_s = min(1.0, self.quiet_s / 4)
        while not self._ended.wait(pause_s):
            if self._pauses:
                continue
            heard = self._heard
            quiet = time.monotonic() - heard
            try:
                if store is not None and self._another_alarm(store):
                    self._write("another rank raised the alarm")
                elif quiet > self.quiet_s and heard != said_at:
                    said_at = heard
                    if store is not None:
                        self._alarms = store.add(_ALARM, 1)
                    self._write(f"nothing since {self._what} for {quiet:.0f} s")
                    self._say(quiet)
            except dist.DistError:
                store = None

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()
        self._disarm()

    def _another_alarm(self, store: Store) -> bool:
        alarms = store.add(_ALARM, 0)
        new, self._alarms = alarms > self._alarms, max(alarms, self._alarms)
        return new

    def _write(self, why: str) -> None:
        with contextlib.suppress(OSError):  # On a full disk the line about it still follows.
            self.file.write(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')} {why}\n")
            self.file.flush()
        faulthandler.dump_traceback(self.file, all_threads=True)

    def _say(self, quiet: float) -> None:
        line = (
            f"rank {collectives.rank()} has not finished a step for {quiet:.0f} s, the last was"
            f" {self._what or 'none'}; all ranks write their stacks to {self.file.name} and its"
            f" siblings, and end after {self.limit_s:.0f} s"
        )
        log.warning("%s", line)
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)

    def _arm(self) -> None:
        # A timer in C: it ends the process even if a call holds the GIL.
        faulthandler.dump_traceback_later(self.limit_s, exit=True, file=self.file)

    def _disarm(self) -> None:
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def watchdog(*, quiet_s: float, limit_s: float, stacks: Path) -> Iterator[Watchdog]:
    """Watch the body; signs of life are expected only inside `Watchdog.watching`.

    A rank without a sign of life for ``quiet_s`` writes the stacks of all its threads, prints one
    message on standard error, and makes all other ranks write their stacks (through the store).
    After ``limit_s`` the process ends with exit code 1. Every rank must call it.

    Args:
        quiet_s: Seconds; must be longer than the longest step.
        limit_s: Seconds; must be longer than ``quiet_s``.
        stacks: A file; its folder is created. It stays empty if nothing happens.
    """
    stacks.parent.mkdir(parents=True, exist_ok=True)
    with stacks.open("a") as file:
        dog = Watchdog(quiet_s, max(limit_s, quiet_s + 1.0), file)
        store = None if collectives.world_size() == 1 else open_meeting("watchdog").clone()
        thread = threading.Thread(target=dog.watch, args=(store,), name="dq-watchdog", daemon=True)
        thread.start()
        try:
            yield dog
        finally:
            dog.end()
            thread.join(5.0)
    with contextlib.suppress(OSError):
        if stacks.stat().st_size == 0:
            stacks.unlink()
