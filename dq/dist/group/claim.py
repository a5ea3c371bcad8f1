"""Let exactly one rank print an error that several ranks may meet, and all end with its code."""

from __future__ import annotations

import threading
import time

import torch.distributed as dist

from dq.dist.exchange import collectives
from dq.dist.group.presence import presence
from dq.dist.rendezvous.store import open_store, pauses

# A live store answers at once, or after seconds on a busy machine. One that was held by a rank that
# is gone never does.
ANSWER_S, ORPHAN_S = 20.0, 3.0
LINGER_S = 2.0
_MAIN = 0


def claim_report(code: int) -> int | None:
    """Claim the report of an error: the first rank to ask prints it, and no rank waits for another.

    In a single process the claim succeeds. It also succeeds if the answer cannot be known, because
    printing an error twice is better than never. The store is asked in a thread, because the client
    of a dead store would try for a long time. If the store is gone together with the main rank that
    held it, the answer is the exit code that this rank sent when it ended.

    Args:
        code: The exit code of this rank's error.

    Returns:
        None if this rank is to print its error. Otherwise the exit code of the rank that prints
        its own, which is the cause of this one; all ranks of a failed job end with one code.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    answers: list[int | None] = []
    asked = threading.Event()

    def ask() -> None:
        try:
            answers.append(_ask_store(code))
        except RuntimeError:
            answers.append(_code_of_main_rank())
        asked.set()

    threading.Thread(target=ask, name="dq-claim", daemon=True).start()
    began = time.monotonic()
    for _ in pauses(0.2):
        limit_s = ORPHAN_S if _is_main_rank_gone() else ANSWER_S
        if asked.is_set() or time.monotonic() - began > limit_s:
            break
    return answers[0] if answers else _code_of_main_rank()


def wait_for_reports(code: int) -> None:
    """Give the other ranks time to claim the report; every rank calls it before it ends.

    The main rank may hold the store. If it ended at once, others with the same error a moment later
    would find the store gone, and each would believe it is the first. So the main rank waits, for
    two seconds at most, and sends its code to those that come later still. The others do not wait.

    Args:
        code: The exit code with which this rank ends.
    """
    if not (dist.is_available() and dist.is_initialized()) or collectives.world_size() == 1:
        return

    def wait() -> None:
        end = time.monotonic() + LINGER_S
        try:
            store = open_store("claims")
            store.add("ending", 1)
            for _ in pauses(0.2):
                if not collectives.is_main_rank() or time.monotonic() > end:
                    return
                if store.add("ending", 0) >= collectives.world_size():
                    return
        except RuntimeError:
            return

    thread = threading.Thread(target=wait, name="dq-wait-for-reports", daemon=True)
    thread.start()
    thread.join(LINGER_S + ANSWER_S)
    if collectives.is_main_rank():
        presence().tell_reported(code)


def _ask_store(code: int) -> int | None:
    """Return what `claim_report` returns, as long as there is a store."""
    store = open_store("claims")
    if store.add("report", 1) == 1:
        store.set("code", str(code))
        return None
    store.wait(["code"])
    return int(store.get("code"))


def _code_of_main_rank() -> int | None:
    return None if collectives.is_main_rank() else presence().of(_MAIN).reported_code


def _is_main_rank_gone() -> bool:
    return not collectives.is_main_rank() and presence().of(_MAIN).is_known_gone
