"""What the main rank does, or reads, for all: they get its result, or all raise its error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from dq.dist.exchange import collectives
from dq.dist.work.on_one_rank import name_of, run_on_rank

T = TypeVar("T")


def on_main_rank(work: Callable[[], T]) -> T:
    """Do work on the main rank and return its result on every rank.

    So a file need lie on one node alone, is read once, and one that is broken ends all ranks alike.
    Every rank must call it. The others wait in no collective, so it may take long.

    Args:
        work: Called on the main rank only; it must not contain a collective.

    Returns:
        What the work returned, the same object alone, a copy on the other ranks.

    Raises:
        ValueError: The work raised one, on every rank.
        RuntimeError: The work failed in another way, on every rank but the main one, which raises
            the error itself.
        Stopped: A signal ended the work, on every rank.
    """
    result: T = collectives.broadcast_object(run_on_rank(work, name=name_of(work)))
    return result
