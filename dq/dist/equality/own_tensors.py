"""Which of this rank's tensors are not those of rank 0."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dq.dist.equality.digest import digests
from dq.dist.exchange import collectives


def own_tensors(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that differ from rank 0's of the same name, by their bytes.

    Running statistics of ordinary batch norms are such. Every rank must call it, at the same step;
    one broadcast of 32 bytes a tensor.

    Args:
        named: With the same names on every rank.

    Returns:
        The tensors themselves; empty on rank 0 and alone.
    """
    if collectives.world_size() == 1:
        return {}
    own = digests(named.items())
    wanted: dict[str, bytes] = collectives.broadcast_object(own)
    return {name: named[name] for name, value in own.items() if wanted.get(name) != value}
