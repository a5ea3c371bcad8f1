"""Choose the ranks over which a training's batch norms are synchronized."""

from __future__ import annotations

from torch import nn

from dq.dist.exchange import collectives
from dq.dist.exchange.node_group import node_group
from dq.dist.norm.sync_batch_norm import convert_sync_batch_norm
from launcher.session import Session


def synchronize_norms(detector: nn.Module, place: Session, over: str) -> None:
    """Let the detector's batch norms use the images of several ranks; every rank must call it.

    Args:
        detector: Changed in place.
        place: The process, with its node.
        over: ``on`` for all ranks, ``node`` for the ranks of each node, ``off`` for none.
    """
    if over == "off" or collectives.world_size() == 1:
        return
    convert_sync_batch_norm(detector, node_group(place.environment) if over == "node" else None)
