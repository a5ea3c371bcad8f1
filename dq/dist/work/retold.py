"""Send an error of one rank to the others, so that all of them end alike."""

from __future__ import annotations

import json

from dq.dist.errors.foreseen import is_expected
from dq.dist.errors.lost import LostRankError
from dq.dist.errors.notes import note
from dq.dist.watch.signals import Stopped

MISTAKE, STOP, FAILURE = "mistake", "stop", "failure"


def error_to_text(error: BaseException) -> str:
    """Return an error as text for `error_from_text`."""
    kind = MISTAKE if isinstance(error, ValueError) else FAILURE
    kind = STOP if isinstance(error, Stopped) else kind
    return json.dumps([kind, is_expected(error), type(error).__name__, str(error)])


def error_from_text(text: str, rank: int) -> Exception | Stopped:
    """Return the exception that another rank raises for an error written by `error_to_text`.

    Args:
        text: From `error_to_text`.
        rank: The rank of the error; it reports the error to the user itself.

    Returns:
        `ValueError` for a ValueError, `Stopped` for a signal, else `LostRankError` with type and
        message.
    """
    kind, foreseen, name, message = json.loads(text)
    if kind == STOP:
        return Stopped(message)
    if kind == MISTAKE:
        mistake = ValueError(message)
        note(mistake, is_expected=foreseen, reported_elsewhere=True)
        return mistake
    failure = LostRankError(f"rank {rank} failed ({name}): {message}")
    note(failure, reported_elsewhere=True)
    return failure
