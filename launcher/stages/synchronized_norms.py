"""Whose images a training normalizes by."""

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
        place: Has this rank's node.
        over: ``on`` for all ranks, ``node`` for those of each node, ``off`` for each alone.
    """
    if over == "off" or collectives.world_size() == 1:
        return
    convert_sync_batch_norm(detector, node_group(place.environment) if over == "node" else None)
