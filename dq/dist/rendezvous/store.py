"""The store of the process group: keys that every rank sees, and meets on without a collective."""

import time
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import PrefixStore, Store

# A server that lives answers within milliseconds, a busy one within seconds.
_ANSWER = timedelta(seconds=15)


def open_store(name: str) -> Store:
    """Open a client of the group's store, whose keys live under `name`.

    The client is this caller's own: a blocked call on another one, or another thread's, never
    delays it. The server lives where the launcher put it: in torchrun's agent, else in rank 0.

    A client goes on trying to reach a dead server for the whole time-out of its store, half an hour
    say; this one gives up early.

    Args:
        name: a name that no other caller uses, the same on every rank.

    Raises:
        ValueError: there is no process group.
        DistError: the server is gone.
    """
    store = distributed_c10d._get_default_store()
    usual: timedelta = store.timeout  # type: ignore[attr-defined]  # torch's stub leaves it out
    store.set_timeout(_ANSWER)
    try:
        return PrefixStore(f"dq/{name}", store.clone())
    finally:
        store.set_timeout(usual)


def pauses(longest_s: float = 1.0) -> Iterator[None]:
    """Pause between two looks at the store: briefly at first, then up to `longest_s` each time."""
    pause_s = 0.02
    while True:
        yield
        time.sleep(pause_s)
        pause_s = min(longest_s, 1.5 * pause_s)


def meet(store: Store, *, limit_s: float, unless: str = "called off") -> list[int]:
    """Wait until every rank has called this on its client of the same store.

    Args:
        store: what `open_store` gave, used for one meeting only.
        limit_s: seconds to wait for the others.
        unless: a key; whoever sets it ends the meeting at once.

    Returns:
        The ranks that did not come; empty when all did.
    """
    world_size = dist.get_world_size()
    names = [f"here/{rank}" for rank in range(world_size)]
    store.set(names[dist.get_rank()], "here")
    store.add("count", 1)
    end = time.monotonic() + limit_s
    for _ in pauses(0.2):
        if store.add("count", 0) == world_size:
            forget(store, [*names, "count", "name"])
            return []
        if time.monotonic() > end or store.check([unless]):
            return [rank for rank, name in enumerate(names) if not store.check([name])]
    raise AssertionError("the pauses ended")


def forget(store: Store, keys: Sequence[str]) -> None:
    """Delete the keys as soon as every rank has called this: the last one does it."""
    if store.add("forgotten", 1) == dist.get_world_size():
        for key in [*keys, "forgotten"]:
            store.delete_key(key)
