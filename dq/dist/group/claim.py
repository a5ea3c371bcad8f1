"""Let exactly one rank do something that every rank wants to do: the first that asks."""

from __future__ import annotations

import threading
import time

import torch.distributed as dist

from dq.dist.exchange import collectives
from dq.dist.rendezvous.store import open_store, pauses

ANSWER_S = 3.0
LINGER_S = 2.0


def first_to_claim(name: str) -> bool:
    """Say whether this rank is the first to ask for ``name``; no rank waits for another.

    Alone the answer is yes. It is yes as well when the store is out of reach: rather twice than
    never. A store whose holder is dead is asked for no more than three seconds, in a thread, for
    its client would try until the time-out of the group.

    Args:
        name: What is claimed, such as ``report``; each name can be claimed once in a group's life.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return True
    answers: list[bool] = []

    def ask() -> None:
        try:
            answers.append(bool(open_store("claims").add(name, 1) == 1))
        except RuntimeError:
            answers.append(True)

    thread = threading.Thread(target=ask, name="dq-claim", daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    return answers[0] if answers else True


def linger(name: str) -> None:
    """Let the others claim ``name`` before this rank ends; for every rank that is about to end.

    The main rank may hold the store. Others that meet the same error a moment later would find it
    gone, and each would think itself the first. It waits two seconds at most, the others not at
    all.
    """
    if not (dist.is_available() and dist.is_initialized()) or collectives.world_size() == 1:
        return

    def wait() -> None:
        end = time.monotonic() + LINGER_S
        try:
            store = open_store("claims")
            store.add(f"{name}/ending", 1)
            for _ in pauses(0.2):
                if not collectives.is_main_rank() or time.monotonic() > end:
                    return
                if store.add(f"{name}/ending", 0) >= collectives.world_size():
                    return
        except RuntimeError:
            return

    thread = threading.Thread(target=wait, name="dq-linger", daemon=True)
    thread.start()
    thread.join(LINGER_S + ANSWER_S)
