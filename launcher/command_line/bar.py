"""A progress bar in the last line of a terminal, below the lines of the log."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

from dq.progress import BARS, Piece

# Back to the first column, and clear the line.
_CLEAR = "\r\x1b[2K"
# Columns where the terminal does not say.
_WIDTH = 80


class Bar(logging.Handler):
    """Draws records of `dq.progress.BARS` into the last line of a terminal.

    The working thread draws it. A thread for the bar alone would hold a lock at times, and a data
    loader process that is forked at such a time would inherit the locked lock.

    Args:
        stream: A terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(logging.DEBUG)
        self.stream = stream
        self._is_drawn, self._owner = False, os.getpid()
        # False after an unfinished line of other text, which drawing the bar would erase.
        self.at_line_start = True

    def emit(self, record: logging.LogRecord) -> None:
        """Draw how far the work is, or remove the bar."""
        piece: Piece | None = getattr(record, "piece", None)
        if piece is None:
            self.hide()
        elif self.at_line_start and os.getpid() == self._owner:
            self.stream.write(_CLEAR + self._line(piece))
            self.stream.flush()
            self._is_drawn = True

    def hide(self) -> None:
        """Clear the bar's line, so that other text can be written there."""
        if self._is_drawn and os.getpid() == self._owner:
            self._is_drawn = False
            self.stream.write(_CLEAR)
            self.stream.flush()

    def _line(self, piece: Piece) -> str:
        from rich.console import Console
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        # The last column stays free: some terminals would begin a new line after it.
        console = Console(file=self.stream, force_terminal=True, width=self._width() - 1)
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(no_wrap=True, overflow="ellipsis")
        if piece.total:
            line.add_column(ratio=1, min_width=4)
        for _ in range(3):
            line.add_column(no_wrap=True, overflow="ellipsis")
        picture = ProgressBar(total=piece.total, completed=piece.done) if piece.total else None
        cells = [Text(piece.what, style="bold"), picture, Text(piece.number), Text(piece.note),
                 Text(piece.left, style="cyan")]  # fmt: skip
        line.add_row(*(cell for cell in cells if cell is not None))
        with console.capture() as captured:
            console.print(line)
        return captured.get().partition("\n")[0]

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self.stream.fileno()).columns or _WIDTH
        except (OSError, ValueError, io.UnsupportedOperation):
            return _WIDTH


class _Above:
    """A stream to the bar's terminal that clears the bar before it writes."""

    def __init__(self, stream: TextIO, bar: Bar) -> None:
        self._stream, self._bar = stream, bar

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Clear the bar, then write; the bar comes back with the next step of the work."""
        self._bar.hide()
        if text:
            self._bar.at_line_start = text.endswith("\n")
        return self._stream.write(text)


@contextmanager
def progress_bar(*, wanted: bool) -> Iterator[None]:
    """Show the progress of the body's work as a bar, if standard output is a terminal.

    Without a terminal, or without rich, progress is logged as a line now and then.

    Args:
        wanted: Whether this rank draws, and the user wants to see it.
    """
    from dq.tracking.live.terminal import can_draw

    if not wanted or not can_draw(sys.stdout):
        yield
        return
    bar = Bar(sys.stdout)
    former = BARS.level, BARS.propagate
    with ExitStack() as stack:
        stack.callback(bar.hide)
        stack.enter_context(redirect_stdout(cast(TextIO, _Above(sys.stdout, bar))))
        if sys.stderr.isatty():
            stack.enter_context(redirect_stderr(cast(TextIO, _Above(sys.stderr, bar))))
        BARS.addHandler(bar)
        stack.callback(BARS.removeHandler, bar)
        BARS.setLevel(logging.DEBUG)
        BARS.propagate = False
        try:
            yield
        finally:
            BARS.setLevel(former[0])
            BARS.propagate = former[1]
