"""The order in which ranks meet on the store: every meeting has a number and a name.

A rank that takes another path through the program would be at the wrong meeting. All ranks would
then wait forever, or mistake one result for another. So the first rank to arrive writes the
meeting's name, and a rank that arrives with another name raises an error.
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

    All meetings share a client. A connected client notices at once that its server is dead; a new
    client would try for long to reach it.
    """

    def __init__(self) -> None:
        self.number = 0
        self.client = open_store("meeting")


_sequences: weakref.WeakKeyDictionary[ProcessGroup, _Sequence] = weakref.WeakKeyDictionary()


def open_meeting(name: str) -> Store:
    """Return the group's store for the next meeting, with a key prefix of its own.

    Every rank must call it, at the same point of the program and with the same name. A thread that
    uses it needs its own clone.

    Args:
        name: The purpose of the meeting.

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
            f"rank {dist.get_rank()} is at {name!r} while another rank is at {found!r}"
            f" (meeting {sequence.number}): all ranks must do the same in the same order, so code"
            " that only some ranks run, such as a hook, must not wait for other ranks"
        )
    return store
