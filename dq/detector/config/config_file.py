"""Read a config file as mmcv does, and clean up if the file cannot be read."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import traceback
from pathlib import Path

from mmcv import Config


class WrongBaseError(ValueError):
    """A config cannot be read because of a ``_base_``; the message says which and why."""


def load_config_file(path: str | Path) -> Config:
    """Return the config in ``path``, unchanged; its ``custom_imports`` are not imported.

    Raises:
        WrongBaseError: Its ``_base_``, or that of one of its bases, is wrong.
        Exception: Any exception of the file; a config is a program.
    """
    before = list(sys.path)
    try:
        return Config.fromfile(str(path), import_custom_modules=False)
    except BaseException as error:
        sys.path[:] = before
        _close_temporary_files(error)
        if said := _wrong_base(error):
            raise WrongBaseError(said) from error
        raise


def _wrong_base(error: BaseException) -> str | None:
    """Return what is wrong with the ``_base_`` at which mmcv failed, or None."""
    above: list[str] = []
    asked: object = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name != "_file2dict":
            continue
        path = str(frame.f_locals["filename"])
        if path in above:
            return f"config {path} is its own base; leave it out of one of the _base_ lists"
        if above and not Path(path).is_file():
            return f"config {path}, which is _base_ {asked!r} of {above[-1]}, does not exist"
        above.append(path)
        asked = frame.f_locals.get("f")
        bases = frame.f_locals.get("base_filename", [])
        wrong = [b for b in bases if not isinstance(b, str) or not b or "\0" in b]
        if wrong:
            return (
                f"config {path}: _base_ has {wrong[0]!r}, which is no path; give the path of a"
                " config as text, or a list of such paths"
            )
    return None


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
