"""The store of the process group: keys that every rank sees, for waiting without a collective."""

import time
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import PrefixStore, Store

# A live server answers within milliseconds, a busy one within seconds.
_ANSWER = timedelta(seconds=15)


def open_store(name: str) -> Store:
    """Open a client of the group's store, with keys under the prefix `name`.

    The caller alone uses this client, so a blocked call of another client or thread never delays
    it. The server runs in torchrun's agent, or else in rank 0.

    By default a client tries to reach a dead server for the whole time-out of its store, which may
    be half an hour; this one gives up early.

    Args:
        name: A name that no other caller uses, the same on every rank.

    Raises:
        ValueError: There is no process group.
        DistError: The server is gone.
    """
    store = distributed_c10d._get_default_store()
    usual: timedelta = store.timeout  # type: ignore[attr-defined]  # Missing in torch's stubs.
    store.set_timeout(_ANSWER)
    try:
        return PrefixStore(f"dq/{name}", store.clone())
    finally:
        store.set_timeout(usual)


def pauses(longest_s: float = 1.0) -> Iterator[None]:
    """Sleep between two looks at the store: briefly at first, then up to `longest_s` each time."""
    pause_s = 0.02
    while True:
        yield
        time.sleep(pause_s)
        pause_s = min(longest_s, 1.5 * pause_s)


def meet(store: Store, *, limit_s: float, unless: str = "called off") -> list[int]:
    """Wait until every rank has called this on its client of the same store.

    Args:
        store: From `open_store`, used for one meeting only.
        limit_s: Seconds to wait for the others.
        unless: A key; setting it ends the meeting at once.

    Returns:
        The ranks that did not arrive; empty when all did.
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
    """Delete the keys when every rank has called this: the last one deletes them."""
    if store.add("forgotten", 1) == dist.get_world_size():
        for key in [*keys, "forgotten"]:
            store.delete_key(key)
