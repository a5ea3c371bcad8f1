"""What the main rank does, or reads, for all: they get its result, or all raise its error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from dq.dist import collectives
from dq.dist.foreseen import is_foreseen

T = TypeVar("T")


def on_main_rank(work: Callable[[], T]) -> T:
    """Do quick work on the main rank and return its result on every rank.

    So a file need lie on one node alone, is read once, and one that is broken ends all ranks alike.
    Every rank must call it. The others wait in a collective: long work belongs in
    `dq.dist.one_rank.run_on_rank`.

    Args:
        work: Called on the main rank only; it must not contain a collective.

    Returns:
        What the work returned, the same object alone, a copy on the other ranks.

    Raises:
        ValueError: The work raised one, on every rank.
        RuntimeError: The work failed in another way, on every rank but the main one, which raises
            the error itself.
    """
    result: T | None = None
    error: Exception | None = None
    if collectives.is_main_rank():
        try:
            result = work()
        except Exception as failure:
            error = failure
    said = None
    if error is not None:
        said = (isinstance(error, ValueError), is_foreseen(error), str(error))
    outcome: tuple[T, tuple[bool, bool, str] | None] = collectives.broadcast_object((result, said))
    if error is not None:
        raise error
    if outcome[1] is not None:
        is_value, foreseen, message = outcome[1]
        same: Exception = ValueError(message) if is_value else RuntimeError(message)
        same.is_foreseen = foreseen  # type: ignore[attr-defined]
        # The main rank raises the error itself, which says more: it is told there.
        same.told_elsewhere = True  # type: ignore[attr-defined]
        raise same
    return outcome[0]
