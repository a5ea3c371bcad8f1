"""What an error says, on one line, to be part of a message.

Many assertions, those of mmdet for example, say nothing: what the user needs is then the statement
that failed. mmcv builds objects inside one another and puts the name of each before the text, so an
assertion without a text arrives as ``VOCFolderDataset: MultiScaleFlipAug: ``.
"""

from __future__ import annotations

import site
import sysconfig
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def error_text(error: BaseException) -> str:
    """Return an error's text on one line; if it has none, its type and the statement that failed.

    Args:
        error: As it was caught, with its traceback.
    """
    text = " ".join(str(error).split())
    if text and not text.endswith(":"):
        return text
    silent = _silent(error)
    return f"{text} {_place(silent)}".strip() if silent is not None else text


def typed_error_text(error: BaseException) -> str:
    """Return `error_text` with the error's type before it."""
    return with_type(error_text(error), error)


def with_type(text: str, error: BaseException) -> str:
    """Return a text about an error with the error's type before it, unless it begins with that."""
    kind = type(error).__name__
    return text if text.startswith(kind) else f"{kind}: {text}"


def short_path(name: str) -> str:
    """Return a file's name relative to the folder it is imported from."""
    paths = sysconfig.get_paths()
    folders = [*site.getsitepackages(), paths["purelib"], paths["platlib"], paths["stdlib"], ROOT]
    for folder in map(str, folders):
        if name.startswith(f"{folder}/"):
            return name[len(folder) + 1 :]
    return name


def _silent(error: BaseException) -> BaseException | None:
    """Return the error without a text from which this one was made, or this one."""
    here: BaseException | None = error
    seen: set[int] = set()
    while here is not None and str(here).strip() and id(here) not in seen:
        seen.add(id(here))
        here = here.__cause__ or here.__context__
    return None if here is None or id(here) in seen else here


def _place(error: BaseException) -> str:
    kind = type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return kind
    last = frames[-1]
    statement = f" ({' '.join(last.line.split())})" if last.line else ""
    return f"{kind} at {short_path(last.filename)}:{last.lineno}{statement}"
