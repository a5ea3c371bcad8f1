"""Let exactly one rank do something that every rank wants to do: the first that asks."""

from __future__ import annotations

import torch.distributed as dist

from dq.dist.store import open_store


def first_to_claim(name: str) -> bool:
    """Say whether this rank is the first to ask for ``name``; no rank waits for another.

    Alone the answer is yes. It is yes as well when the store is out of reach: rather twice than
    never.

    Args:
        name: What is claimed, such as ``report``; each name can be claimed once in a group's life.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return True
    try:
        return bool(open_store("claims").add(name, 1) == 1)
    except RuntimeError:
        return True
