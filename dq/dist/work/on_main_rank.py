"""Work or reading that the main rank does for all: every rank gets its result or its error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from dq.dist.exchange import collectives
from dq.dist.work.all_here import wait_for_all_ranks
from dq.dist.work.on_one_rank import name_of, run_on_rank

T = TypeVar("T")


def on_main_rank(work: Callable[[], T]) -> T:
    """Do work on the main rank and return its result on every rank.

    So a file must exist on one node only and is read once, and a broken one ends all ranks alike.
    Every rank must call it. Neither the main rank nor the others wait in a collective, so the work
    may take long, and a rank may come late, for example because its disk is slow.

    Args:
        work: Called on the main rank only; it must not contain a collective.

    Returns:
        What the work returned: the same object on the main rank, a copy on the others.

    Raises:
        ValueError: On every rank, if the work raised one.
        RuntimeError: On the other ranks, if the work failed in another way; the main rank raises
            the error itself.
        Stopped: On every rank, if a signal ended the work.
    """
    name = name_of(work)
    result = run_on_rank(work, name=name)
    wait_for_all_ranks(f"the result of {name}")
    shared: T = collectives.broadcast_object(result)
    return shared
