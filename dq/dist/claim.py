"""Let exactly one rank do something that every rank wants to do: the first that asks."""

from __future__ import annotations

import threading

import torch.distributed as dist

from dq.dist.store import open_store

ANSWER_S = 3.0


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
