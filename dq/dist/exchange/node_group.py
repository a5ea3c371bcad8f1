"""A process group of the ranks on one node."""

from __future__ import annotations

import torch.distributed as dist

from dq.dist.exchange import collectives
from dq.dist.rendezvous.environment import Environment


def node_group(environment: Environment) -> dist.ProcessGroup | None:
    """Return the group of the ranks on this node, or None (all ranks) if there is one node.

    Statistics exchanged only inside a node never wait for the network between nodes. Every rank
    must call it, at the same step, because every rank takes part in creating every group.

    Args:
        environment: Rank and node of this process.
    """
    if collectives.world_size() == 1:
        return None
    nodes = collectives.all_gather_objects(environment.node)
    if len(set(nodes)) == 1:
        return None
    mine = None
    for node in sorted(set(nodes)):
        group = dist.new_group([rank for rank, where in enumerate(nodes) if where == node])
        if isinstance(group, dist.ProcessGroup):  # A rank outside the group gets a number.
            mine = group
    return mine
