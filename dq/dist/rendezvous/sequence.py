"""The order in which ranks meet on the store: every meeting has a number and a name.

A rank that takes another way through the program than the rest would meet them in the wrong place,
and all would wait for what never comes, or take one thing for another. So the first who comes
leaves the meeting's name, and whoever comes with another one says so.
"""

from __future__ import annotations

import weakref

import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_group

from dq.dist.rendezvous.store import open_store

NAME = "name"


class _Sequence:
    """How many meetings a group has had; it lives as long as its group.

    All of them share a client: one that has been connected finds at once that its server is dead,
    where a new one tries for long to reach it.
    """

    def __init__(self) -> None:
        self.number = 0
        self.client = open_store("meeting")


_sequences: weakref.WeakKeyDictionary[ProcessGroup, _Sequence] = weakref.WeakKeyDictionary()


def open_meeting(name: str) -> Store:
    """Return the group's store for the next meeting, whose keys are that one's alone.

    Every rank must call it, at the same point of the program and with the same name. A thread that
    uses it needs a clone of its own.

    Args:
        name: What the ranks meet for.

    Raises:
        ValueError: There is no process group.
        RuntimeError: Another rank is at another meeting.
        DistError: The store is gone.
    """
    group = _get_default_group()
    if group not in _sequences:
        _sequences[group] = _Sequence()
    sequence = _sequences[group]
    sequence.number += 1
    store = PrefixStore(str(sequence.number), sequence.client)
    found = store.compare_set(NAME, "", name).decode()
    if found != name:
        raise RuntimeError(
            f"rank {dist.get_rank()} is at {name!r} while another rank is at {found!r}, the"
            f" {sequence.number}. meeting of both: ranks must do the same in the same order, and"
            " code that only some of them run, a hook say, must not"
        )
    return store
