"""Let exactly one rank do something that every rank would do: the first to ask."""

from __future__ import annotations

import threading
import time

import torch.distributed as dist

from dq.dist.exchange import collectives
from dq.dist.rendezvous.store import open_store, pauses

ANSWER_S = 3.0
LINGER_S = 2.0


def first_to_claim(name: str) -> bool:
    """Return whether this rank is the first to ask for ``name``; no rank waits for another.

    In a single process the answer is yes. It is also yes if the store is unreachable: doing it
    twice is better than never. The store is asked in a thread for at most three seconds, because
    the client of a dead store would try until the time-out of the group.

    Args:
        name: What is claimed, such as ``report``. Each name can be claimed once per process group.
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


def wait_for_claims(name: str) -> None:
    """Give the others time to claim ``name`` before this rank ends; for every rank about to end.

    The main rank may hold the store. Other ranks with the same error a moment later would find the
    store gone, and each would believe it is the first. The main rank waits two seconds at most;
    the others do not wait.
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

    thread = threading.Thread(target=wait, name="dq-wait-for-claims", daemon=True)
    thread.start()
    thread.join(LINGER_S + ANSWER_S)
