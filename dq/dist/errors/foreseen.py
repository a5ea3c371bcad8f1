"""Which errors are said in words of our own, and where all others come from.

Libraries raise ValueError and RuntimeError too, in words that name neither the fault nor its mend.
What counts as ours was raised by a ``raise`` statement of these packages.
"""

from __future__ import annotations

import dis
import re
import site
import sysconfig
from pathlib import Path
from types import TracebackType

OURS = ("dq", "launcher", "slurm")
ROOT = Path(__file__).resolve().parents[3]
# What a loader process says of its error: type, place and traceback are in the text alone.
_FROM_WORKER = re.compile(r"^Caught (?P<type>\w+) in .*?\n.*?Traceback", re.DOTALL)
_FRAME = re.compile(r'^  File "(?P<file>.+?)", line (?P<line>\d+), in .+\n(?:    (?P<code>.*)\n)?',
                    re.MULTILINE)  # fmt: skip
_RAISE = dis.opmap["RAISE_VARARGS"]


def is_foreseen(error: BaseException) -> bool:
    """Say whether an error's message was written by us, for whoever reads it.

    Args:
        error: As it was caught, with its traceback; what another rank's became here says itself
            what that one was.
    """
    if hasattr(error, "is_foreseen"):
        return bool(error.is_foreseen)
    if not isinstance(error, ValueError | RuntimeError):
        return False
    worker = _last_frame_of_worker(error)
    if worker is not None:
        return _is_ours(worker["file"]) and (worker["code"] or "").startswith("raise ")
    last = _last(error.__traceback__)
    if last is None:
        return True  # Never raised, only made to be told.
    code = last.tb_frame.f_code
    return _is_ours(code.co_filename) and code.co_code[last.tb_lasti] == _RAISE


def place_of(error: BaseException) -> str:
    """Return ``file:line`` of where an error was raised, short where the file is a library's."""
    worker = _last_frame_of_worker(error)
    if worker is not None:
        return f"{_short(worker['file'])}:{worker['line']}"
    last = _last(error.__traceback__)
    if last is None:
        return "an unknown place"
    return f"{_short(last.tb_frame.f_code.co_filename)}:{last.tb_lineno}"


def words_of(error: BaseException) -> str:
    """Return an error's message as one line, without the traceback that a loader process adds."""
    text = str(error)
    if _FROM_WORKER.match(text):
        rest = text[_all_frames(text)[-1].end() :] if _all_frames(text) else text
        said = [line for line in rest.splitlines() if line.strip() and not line.startswith(" ")]
        text = said[0].partition(": ")[2] if said else ""
    return " ".join(text.split())


def described(error: BaseException) -> str:
    """Return type, message and place of an error that nobody foresaw, as one line."""
    worker = _FROM_WORKER.match(str(error))
    kind = worker["type"] if worker else type(error).__name__
    words = words_of(error)
    where = " in a loader process" if worker else ""
    return f"{kind}{': ' if words else ''}{words}, raised at {place_of(error)}{where}"


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


def _short(name: str) -> str:
    """Return a file's name below the folder that it is imported from."""
    paths = sysconfig.get_paths()
    folders = [*site.getsitepackages(), paths["purelib"], paths["platlib"], paths["stdlib"], ROOT]
    for folder in map(str, folders):
        if name.startswith(f"{folder}/"):
            return name[len(folder) + 1 :]
    return name
