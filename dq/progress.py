"""Say how much of a long piece of work is done, and how long the rest will take.

Lines go to the log. A terminal may show a bar too: whoever owns the terminal gives `BARS` a handler
and a level, and each `Piece` says what to draw. Without them `show` costs nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Self, TypeVar

from dq.counted import counted

log = logging.getLogger(__name__)
T = TypeVar("T")
# Its records carry a `Piece` as the attribute ``piece``. They are made only if `has_bar`.
BARS = logging.getLogger(f"{__name__}.bar")
# Seconds between two lines, and between two pictures of a bar.
EVERY_S = 10.0
DRAWN_EVERY_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The state of a piece of work.

    Attributes:
        what: The work.
        done: Number of units done.
        total: Number of all units; None if it is not known.
        unit: What is counted, such as ``layer[s]``.
        left_s: Seconds that the rest will take; None if they are not known.
        note: What else is worth seeing, such as a loss.
    """

    what: str
    done: int
    total: int | None
    unit: str
    left_s: float | None = None
    note: str = ""

    @property
    def number(self) -> str:
        """The units done, such as ``12 of 113 layers``."""
        if self.total is None:
            return counted(self.done, self.unit)
        return f"{self.done} of {counted(self.total, self.unit)}"

    @property
    def left(self) -> str:
        """The time left, such as ``35 s to go``; empty if it is not known."""
        return "" if self.left_s is None else f"{_time(self.left_s)} to go"


class Pace:
    """Says when to redraw the bar, and how long the rest of the work will take.

    Args:
        total: Number of units; None if it is not known.
    """

    def __init__(self, total: int | None) -> None:
        self.total = total
        self._began = self._drawn = time.monotonic()

    def is_due(self) -> bool:
        """Return whether to redraw the terminal's bar; if so, the caller is expected to do it."""
        now = time.monotonic()
        if now - self._drawn < DRAWN_EVERY_S or not has_bar():
            return False
        self._drawn = now
        return True

    def left_s(self, done: int) -> float | None:
        """Return the seconds that the rest will take at the pace so far."""
        if self.total is None or done <= 0:
            return None
        return (time.monotonic() - self._began) / done * max(0, self.total - done)


def has_bar() -> bool:
    """Return whether a terminal shows a bar."""
    return bool(BARS.handlers) and BARS.isEnabledFor(logging.DEBUG)


def show(piece: Piece | None) -> None:
    """Let the terminal, if there is one, show how far a piece of work is; None removes the bar."""
    if has_bar():
        BARS.debug("", extra={"piece": piece})


class Progress:
    """Logs a line such as ``AdaRound: 12 of 113 layers, 35 s to go``, at most every few seconds.

    Work that takes less than that logs nothing. The end of a ``with`` block removes the bar,
    however much of the work is done.

    Args:
        what: The work.
        total: Number of units; None if it is not known, and then no time is given.
        unit: What is counted, such as ``layer[s]``.
    """

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self._done = 0
        self._shown = time.monotonic()
        self._pace = Pace(total)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        show(None)

    def advance(self, number: int = 1) -> None:
        """Count so many more units as done."""
        self._done += number
        if self._pace.is_due():
            show(self._piece())
        if self._done == self.total:
            show(None)
        now = time.monotonic()
        if now - self._shown < EVERY_S:
            return
        self._shown = now
        piece = self._piece()
        log.info("%s", ", ".join(filter(None, (f"{piece.what}: {piece.number}", piece.left))))

    def _piece(self) -> Piece:
        return Piece(
            what=self.what,
            done=self._done,
            total=self.total,
            unit=self.unit,
            left_s=self._pace.left_s(self._done),
        )


def progress(items: Iterable[T], what: str, unit: str) -> Iterator[T]:
    """Yield the items, and log how many are done; see `Progress`."""
    shown = Progress(what, len(items) if isinstance(items, Sized) else None, unit)
    with shown:
        for item in items:
            yield item
            shown.advance()


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
