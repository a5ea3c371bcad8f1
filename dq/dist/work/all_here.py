"""Wait for all ranks without a collective, before a collective that some may reach much later."""

from __future__ import annotations

import time

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from dq.dist.errors.lost import LostRankError, lost_store
from dq.dist.exchange import collectives
from dq.dist.group.presence import Presence, presence
from dq.dist.rendezvous.sequence import NAME, open_meeting
from dq.dist.rendezvous.store import forget, pauses

_COUNT, _LOST = "count", "lost"
# Limit for ranks that cannot be watched; then the collective's own time-out decides.
UNSEEN_S = 1800.0


def wait_for_all_ranks(name: str, *, limit_s: float = 86400.0) -> None:
    """Wait until every rank has called this, or one of them has died.

    Every rank must call it, at the same step. The main rank watches all others, which watch it.

    Args:
        name: What the ranks are about to do, the same on all of them.
        limit_s: Seconds to wait in total.

    Raises:
        RuntimeError: A rank has died, or did not arrive within the limit.
    """
    if collectives.world_size() == 1:
        return
    try:
        store, here = open_meeting(name), presence()
        store.set(_here(collectives.rank()), "")
        store.add(_COUNT, 1)
        _wait(store, here, name, limit_s)
    except dist.DistError as error:
        raise lost_store(error) from error


def _wait(store: Store, here: Presence, name: str, limit_s: float) -> None:
    ranks = range(collectives.world_size())
    watched = [r for r in ranks if r] if collectives.is_main_rank() else [0]
    begin = time.monotonic()
    for _ in pauses(0.5):
        if store.add(_COUNT, 0) >= len(ranks):
            forget(store, [NAME, _COUNT, *map(_here, ranks)])
            return
        if store.check([_LOST]):
            raise _lost(int(store.get(_LOST)), name)
        connections = {rank: here.of(rank) for rank in watched}
        gone = [rank for rank, connection in connections.items() if connection.is_gone()]
        for rank in gone:
            store.set(_LOST, str(rank))
            raise _lost(rank, name)
        waited = time.monotonic() - begin
        if waited > limit_s:
            missing = [rank for rank in ranks if not store.check([_here(rank)])]
            raise LostRankError(
                f"rank {', '.join(map(str, missing[:8]))} did not come to {name} within"
                f" {limit_s:g} s; look at the logs of those ranks"
            )
        if waited > UNSEEN_S and not all(found.is_open for found in connections.values()):
            return


def _here(rank: int) -> str:
    return f"here/{rank}"


def _lost(rank: int, name: str) -> LostRankError:
    return LostRankError(
        f"rank {rank} was lost while others waited for it ({name}): it was killed, or ended with an"
        " error of its own, which its log names"
    )
