"""Logs: rank 0 logs to the console, and every rank to its own file."""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dq.progress import has_bar

PROGRESS = "dq.progress"
FORMAT = "%(asctime)s %(levelname).1s %(message)s"


class _ConsoleFormatter(logging.Formatter):
    """Leave tracebacks out; they are in the file."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's message without its traceback."""
        plain = copy.copy(record)
        plain.exc_info = plain.exc_text = plain.stack_info = None
        return super().format(plain)


class _RankFile(logging.FileHandler):
    """A log file whose disk may fill up: one line says so, and the command continues."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self._said = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        """Say once that the file cannot be written; leave other errors of `emit` to logging."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._said:
            self._said = True
            line = f"{self.baseFilename} cannot be written: {error.strerror}; the command continues"
            print(f"warning: {line}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close the file; what cannot be written is lost."""
        with contextlib.suppress(OSError):
            super().close()


def _belongs_on_console(record: logging.LogRecord) -> bool:
    """Keep off the console: warnings of libraries, mmcv's list of hooks, what a bar shows."""
    if record.name == PROGRESS and has_bar():
        return False
    return record.name != "py.warnings" and "\n" not in record.getMessage()


@contextmanager
def logging_to(folder: Path, *, rank: int, quiet: bool = False) -> Iterator[Path]:
    """Log into ``folder/rank_<rank>.log``, and on rank 0 to the console too, within the context.

    Python's warnings go only to the file, because mmcv and mmdet emit dozens of deprecation
    warnings. Tracebacks go only to the file too.

    Args:
        folder: Created if it is missing.
        rank: Of this process.
        quiet: Show only warnings and errors on the console.

    Yields:
        The path of this rank's file.

    Raises:
        ValueError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank_{rank}.log"
        file = _RankFile(path)
    except OSError as error:
        raise ValueError(
            f"work dir {folder} cannot be written: {error.strerror}; choose another --work-dir"
        ) from error
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handlers: list[logging.Handler] = [file]
    if rank == 0:
        console = logging.StreamHandler(sys.stdout)
        console.setFormatter(_ConsoleFormatter(FORMAT, datefmt="%H:%M:%S"))
        console.addFilter(_belongs_on_console)
        console.setLevel(logging.WARNING if quiet else logging.NOTSET)
        handlers.append(console)
    root = logging.getLogger()
    # A config's log_level is for this command alone.
    changed = [root, logging.getLogger("dq"), logging.getLogger("launcher")]
    levels = [logger.level for logger in changed]
    root.setLevel(logging.INFO)
    for handler in handlers:
        root.addHandler(handler)
    shown = warnings.showwarning
    logging.captureWarnings(True)
    try:
        yield path
    finally:
        if warnings.showwarning is not shown:  # They were not captured before.
            logging.captureWarnings(False)
        for logger, level in zip(changed, levels, strict=True):
            logger.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
