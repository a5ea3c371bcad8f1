"""Read a config file as mmcv does, and clean up if the file cannot be read."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import traceback
from pathlib import Path

from mmcv import Config


def load_config_file(path: str | Path) -> Config:
    """Return the config in ``path``, unchanged; its ``custom_imports`` are not imported.

    Raises:
        Exception: Any exception of the file; a config is a program.
    """
    before = list(sys.path)
    try:
        return Config.fromfile(str(path), import_custom_modules=False)
    except BaseException as error:
        sys.path[:] = before
        _close_temporary_files(error)
        raise


def _close_temporary_files(error: BaseException) -> None:
    """Close the temporary files that mmcv had open when ``error`` was raised.

    mmcv has removed their folder by then. A file that stays open fails much later: Python's garbage
    collector cannot delete it and prints an unrelated traceback, or breaks the parser that runs at
    that moment (Python 3.11: "AST constructor recursion depth mismatch").
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            if isinstance(value, tempfile._TemporaryFileWrapper):
                with contextlib.suppress(FileNotFoundError):
                    value.close()
