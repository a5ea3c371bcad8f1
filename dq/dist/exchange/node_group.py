"""The ranks of one node as a group of their own."""

from __future__ import annotations

import torch.distributed as dist

from dq.dist.exchange import collectives
from dq.dist.rendezvous.environment import Environment


def node_group(environment: Environment) -> dist.ProcessGroup | None:
    """Return the group of the ranks on this node; None, which means all, where there is one node.

    Statistics exchanged inside a node alone never wait for the network between nodes. Every rank
    must call it, at the same step, for every rank takes part in the making of every group.

    Args:
        environment: This process's place.
    """
    if collectives.world_size() == 1:
        return None
    nodes = collectives.all_gather_objects(environment.node)
    if len(set(nodes)) == 1:
        return None
    mine = None
    for node in sorted(set(nodes)):
        group = dist.new_group([rank for rank, where in enumerate(nodes) if where == node])
        if isinstance(group, dist.ProcessGroup):  # a rank outside gets a mere number
            mine = group
    return mine
