"""Let exactly one rank print an error that several ranks may meet: the first to ask."""

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


def first_to_report() -> bool:
    """Return whether this rank is the first to report an error; no rank waits for another.

    In a single process the answer is yes. It is also yes if nobody can tell, because printing an
    error twice is better than never. The store is asked in a thread, since the client of a dead
    store would try for long. Where the store is gone together with the main rank that held it, the
    answer is what that rank said when it ended.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return True
    answers: list[bool] = []
    asked = threading.Event()

    def ask() -> None:
        try:
            answers.append(bool(open_store("claims").add("report", 1) == 1))
        except RuntimeError:
            answers.append(not _has_main_rank_reported())
        asked.set()

    threading.Thread(target=ask, name="dq-claim", daemon=True).start()
    began = time.monotonic()
    for _ in pauses(0.2):
        limit_s = ORPHAN_S if _is_main_rank_gone() else ANSWER_S
        if asked.is_set() or time.monotonic() - began > limit_s:
            break
    return answers[0] if answers else not _has_main_rank_reported()


def wait_for_reports() -> None:
    """Give the others time to ask before this rank ends; for every rank about to end.

    The main rank may hold the store. Others with the same error a moment later would find the
    store gone, and each would believe it is the first. The main rank waits two seconds at most and
    tells those that are later still; the others do not wait.
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
        presence().tell_reported()


def _has_main_rank_reported() -> bool:
    return not collectives.is_main_rank() and presence().of(_MAIN).has_reported


def _is_main_rank_gone() -> bool:
    return not collectives.is_main_rank() and presence().of(_MAIN).is_known_gone
