"""Logs: rank 0 on the console, every rank in a file of its own."""

from __future__ import annotations

import copy
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FORMAT = "%(asctime)s %(levelname).1s %(message)s"


class _ConsoleFormatter(logging.Formatter):
    """Leave tracebacks to the file."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's message alone."""
        plain = copy.copy(record)
        plain.exc_info = plain.exc_text = plain.stack_info = None
        return super().format(plain)


def _belongs_on_console(record: logging.LogRecord) -> bool:
    """Leave warnings of libraries and mmcv's list of hooks to the file."""
    return record.name != "py.warnings" and "\n" not in record.getMessage()


@contextmanager
def logging_to(folder: Path, *, rank: int) -> Iterator[Path]:
    """Log into ``folder/rank_<rank>.log``, and on the console for rank 0, until the end.

    Python's warnings go to the file alone: mmcv and mmdet emit dozens about their own past. So do
    tracebacks.

    Args:
        folder: Made where it is missing.
        rank: Of this process.

    Yields:
        This rank's file.

    Raises:
        ValueError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank_{rank}.log"
        file = logging.FileHandler(path, encoding="utf-8")
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
        handlers.append(console)
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.INFO)
    for handler in handlers:
        root.addHandler(handler)
    shown = warnings.showwarning
    logging.captureWarnings(True)
    try:
        yield path
    finally:
        if warnings.showwarning is not shown:  # Captured here, and not before.
            logging.captureWarnings(False)
        root.setLevel(before)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
