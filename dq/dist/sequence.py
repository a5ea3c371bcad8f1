"""The order in which ranks meet on the store: every meeting has a number and a name.

A rank that takes another way through the program than the rest would meet them in the wrong place,
and all would wait for what never comes, or take one thing for another. So the first who comes
leaves the meeting's name, and whoever comes with another one says so.
"""

from __future__ import annotations

import weakref

import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import Store, _get_default_group

from dq.dist.store import open_store

NAME = "name"


class _Sequence:
    """How many meetings a group has had; it lives as long as its group."""

    def __init__(self) -> None:
        self.number = 0


_sequences: weakref.WeakKeyDictionary[ProcessGroup, _Sequence] = weakref.WeakKeyDictionary()


def open_meeting(name: str) -> Store:
    """Open a client of the group's store for the next meeting, whose keys are that one's alone.

    Every rank must call it, at the same point of the program and with the same name. The client is
    the caller's own.

    Args:
        name: What the ranks meet for.

    Raises:
        ValueError: There is no process group.
        RuntimeError: Another rank is at another meeting.
        DistError: The store is gone.
    """
    sequence = _sequences.setdefault(_get_default_group(), _Sequence())
    sequence.number += 1
    store = open_store(f"meeting/{sequence.number}")
    found = store.compare_set(NAME, "", name).decode()
    if found != name:
        raise RuntimeError(
            f"rank {dist.get_rank()} is at {name!r} while another rank is at {found!r}, the"
            f" {sequence.number}. meeting of both: ranks must do the same in the same order, and"
            " code that only some of them run, a hook say, must not"
        )
    return store
