"""Say how much of a long piece of work is done, and how long the rest will take."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")
# Seconds between two lines.
EVERY_S = 10.0


class Progress:
    """Logs a line such as ``AdaRound: 12 of 113 layers, 35 s to go``, at most every few seconds.

    Work that takes less than that logs nothing.

    Args:
        what: The work.
        total: Number of units; None if it is not known, and then no time is given.
        unit: What is counted, such as ``layers``.
    """

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self._done = 0
        self._began = self._shown = time.monotonic()

    def advance(self, number: int = 1) -> None:
        """Count so many more units as done."""
        self._done += number
        now = time.monotonic()
        if now - self._shown < EVERY_S:
            return
        self._shown = now
        text = f"{self.what}: {self._done} {self.unit}"
        if self.total is not None:
            rest = (now - self._began) / self._done * max(0, self.total - self._done)
            text = f"{self.what}: {self._done} of {self.total} {self.unit}, {_time(rest)} to go"
        log.info("%s", text)


def progress(items: Iterable[T], what: str, unit: str) -> Iterator[T]:
    """Yield the items, and log how many are done; see `Progress`."""
    shown = Progress(what, len(items) if isinstance(items, Sized) else None, unit)
    for item in items:
        yield item
        shown.advance()


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
