"""Print the tables of `launcher compare` with rich, or as plain text if rich is not installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dq.tracking.reports.comparison import Line

# Columns of text, aligned left; all others are numbers, aligned right.
_WORDS = (0, 6, 11)


class Screen:
    """Print plain text."""

    def say(self, text: str) -> None:
        """Print a text unchanged."""
        print(text)

    def table(self, lines: Sequence[Line]) -> None:
        """Print a table of experiments."""
        from dq.tracking.reports.comparison import HEADS, cells

        rows = [list(HEADS.values()), *map(cells, lines)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            placed = (
                cell.ljust(width) if number in _WORDS else cell.rjust(width)
                for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            print(" ".join(placed).rstrip())


class RichScreen(Screen):
    """Print with rich: in the width of the terminal, or 160 columns into a file."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console()
        if not self._console.is_terminal:
            self._console.width = 160

    def say(self, text: str) -> None:
        """Print a text unchanged; rich would read a name such as [lr=0.1] as markup."""
        self._console.print(text, markup=False, highlight=False)

    def table(self, lines: Sequence[Line]) -> None:
        """Print a table of experiments; long names are wrapped."""
        from rich.table import Table
        from rich.text import Text

        from dq.tracking.reports.comparison import HEADS, cells

        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        for number, head in enumerate(HEADS.values()):
            justify = "left" if number in _WORDS else "right"
            table.add_column(head, justify=justify, no_wrap=number > 0, overflow="fold")  # type: ignore[arg-type]
        for line in lines:
            table.add_row(*map(Text, cells(line)))
        self._console.print(table)


def screen_of() -> Screen:
    """Return a screen with rich if it is installed."""
    return RichScreen() if importlib.util.find_spec("rich") is not None else Screen()
