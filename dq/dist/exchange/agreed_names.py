"""Check that named values are the same on all ranks before they share one collective."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch

from dq.dist.exchange import collectives


def agreed_names(names: Iterable[str], what: str, advice: str) -> list[str]:
    """Return the names in an order that is the same on all ranks.

    A collective over concatenated values mixes them up if ranks have a different order, and hangs
    if one rank has more of them. Every rank must call it, at the same step; one collective of 32
    bytes per rank.

    Args:
        names: The names on this rank, in any order.
        what: The kind of values, for the message, such as ``losses``.
        advice: Advice to the user, for the message.

    Raises:
        ValueError: On all ranks if the names differ; the message has the names and their ranks.
    """
    own = sorted(set(names))
    if collectives.world_size() == 1:
        return own
    digest = hashlib.sha256("\0".join(own).encode()).digest()
    mine = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
    digests = collectives.all_gather(mine.to(collectives.host_device()))
    if bool((digests == digests[0]).all()):
        return own
    everywhere = [set(found) for found in collectives.all_gather_objects(own)]
    differing = sorted(set.union(*everywhere) - set.intersection(*everywhere))
    said = [f"{name} on {_ranks(name, everywhere)}" for name in differing[:4]]
    more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
    raise ValueError(f"{what} differ between ranks: {'; '.join(said)}{more}; {advice}")


def _ranks(name: str, everywhere: list[set[str]]) -> str:
    having = [rank for rank, found in enumerate(everywhere) if name in found]
    shown = ", ".join(map(str, having[:4])) + (", ..." if len(having) > 4 else "")
    return f"rank {shown} of {len(everywhere)} alone"
