"""Tell expected errors, with a message of our own, from unexpected ones, and locate the latter.

Libraries also raise ValueError and RuntimeError, but their messages name neither the cause nor the
fix. An error counts as expected if a ``raise`` statement of these packages raised it.
"""

from __future__ import annotations

import dis
import re
from pathlib import Path
from types import TracebackType

from dq.dist.errors.notes import notes_on
from dq.error_text import ROOT, short_path

OURS = ("dq", "launcher", "slurm")
# How a loader process reports its error: type, place and traceback are only in the text.
_FROM_WORKER = re.compile(r"^Caught (?P<type>\w+) in .*?\n.*?Traceback", re.DOTALL)
_FRAME = re.compile(r'^  File "(?P<file>.+?)", line (?P<line>\d+), in .+\n(?:    (?P<code>.*)\n)?',
                    re.MULTILINE)  # fmt: skip
_RAISE = dis.opmap["RAISE_VARARGS"]


def is_expected(error: BaseException) -> bool:
    """Return whether an error has a message that we wrote for the user.

    Args:
        error: As it was caught, with its traceback. An error received from another rank has
            it in its notes.
    """
    noted = notes_on(error).is_expected
    if noted is not None:
        return noted
    if not isinstance(error, ValueError | RuntimeError):
        return False
    worker = _last_frame_of_worker(error)
    if worker is not None:
        return _is_ours(worker["file"]) and (worker["code"] or "").startswith("raise ")
    last = _last(error.__traceback__)
    if last is None:
        return True  # Never raised, only created to be reported.
    code = last.tb_frame.f_code
    return _is_ours(code.co_filename) and code.co_code[last.tb_lasti] == _RAISE


def error_location(error: BaseException) -> str:
    """Return ``file:line`` where an error was raised; the path is short for a library's file."""
    worker = _last_frame_of_worker(error)
    if worker is not None:
        return f"{short_path(worker['file'])}:{worker['line']}"
    last = _last(error.__traceback__)
    if last is None:
        return "an unknown place"
    return f"{short_path(last.tb_frame.f_code.co_filename)}:{last.tb_lineno}"


def error_message(error: BaseException) -> str:
    """Return an error's message as one line, without the traceback a loader process adds."""
    text = str(error)
    if _FROM_WORKER.match(text):
        rest = text[_all_frames(text)[-1].end() :] if _all_frames(text) else text
        said = [line for line in rest.splitlines() if line.strip() and not line.startswith(" ")]
        text = said[0].partition(": ")[2] if said else ""
    return " ".join(text.split())


def error_summary(error: BaseException) -> str:
    """Return type, message and place of an unexpected error as one line."""
    worker = _FROM_WORKER.match(str(error))
    kind = worker["type"] if worker else type(error).__name__
    words = error_message(error)
    where = " in a loader process" if worker else ""
    return f"{kind}{': ' if words else ''}{words}, raised at {error_location(error)}{where}"


def _all_frames(text: str) -> list[re.Match[str]]:
    return list(_FRAME.finditer(text))


def _last_frame_of_worker(error: BaseException) -> dict[str, str] | None:
    text = str(error)
    if not _FROM_WORKER.match(text):
        return None
    frames = _all_frames(text)
    return frames[-1].groupdict() if frames else None


def _last(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def _is_ours(name: str) -> bool:
    return any(Path(name).is_relative_to(ROOT / package) for package in OURS)
