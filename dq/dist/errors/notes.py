"""Notes on an error besides its message: whether it has been printed, and its exit code.

Python's own exceptions do not support weak references, and an ordinary dictionary would keep an
error alive, with the tensors of its traceback. So the notes are an attribute of the exception, and
only this module sets and reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

_ATTRIBUTE = "_dq_notes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notes:
    """Notes on one exception.

    Attributes:
        reported: The user has been told, or another rank tells the user.
        reported_elsewhere: It comes from another rank, which is alive and reports it itself.
        exit_code: Exit code of the error that was reported for all ranks; None if unknown.
        is_expected: Whether the error was expected where it was raised first; None if it was raised
            in this process, where its traceback says so.
    """

    reported: bool = False
    reported_elsewhere: bool = False
    exit_code: int | None = None
    is_expected: bool | None = None


def notes_on(error: BaseException) -> Notes:
    """Return what was noted on an error; by default nothing."""
    found: Notes = getattr(error, _ATTRIBUTE, None) or Notes()
    return found


def note(error: BaseException, **facts: Any) -> None:
    """Note facts on an error, beside those noted before.

    Args:
        error: Any exception.
        facts: Attributes of `Notes`.
    """
    setattr(error, _ATTRIBUTE, replace(notes_on(error), **facts))
