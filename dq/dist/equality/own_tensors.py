"""Find the tensors of this rank that differ from those of rank 0."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dq.dist.equality.digest import digests
from dq.dist.exchange import collectives


def own_tensors(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose bytes differ from rank 0's tensor of the same name.

    Running statistics of ordinary batch norms are an example. Every rank must call it, at the same
    step; one broadcast of 32 bytes per tensor.

    Args:
        named: The names must be the same on every rank.

    Returns:
        The tensors themselves; empty on rank 0 and in a single process.
    """
    if collectives.world_size() == 1:
        return {}
    own = digests(named.items())
    wanted: dict[str, bytes] = collectives.broadcast_object(own)
    return {name: named[name] for name, value in own.items() if wanted.get(name) != value}
