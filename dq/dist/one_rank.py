"""Work that one rank does while the others wait on the store, outside any collective.

Ranks that wait in a collective burn its time-out: an evaluation longer than it, on the main rank
alone, ends the job. Here they look at a key of the store instead, under gloo and NCCL alike. The
working rank shows by a heartbeat that it lives, and hands its error to the others.
"""

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from dq.dist import collectives
from dq.dist.lost import LostRankError, reason
from dq.dist.store import forget, open_store, pauses

log = logging.getLogger(__name__)
T = TypeVar("T")

_calls = itertools.count()
_BEAT, _END, _DONE, _FAILED = "beat", "end", "done", "failed"
_KEYS = (_BEAT, _END)


def run_on_rank(
    work: Callable[[], T],
    *,
    rank: int = 0,
    limit_s: float = 86400.0,
    heartbeat_s: float = 2.0,
    silence_s: float = 30.0,
    arrival_s: float = 1800.0,
) -> T | None:
    """Do the work on one rank while all others wait, and return when it is done.

    Every rank must call it, at the same step. The work must not contain a collective.

    Args:
        work: what to do; called on one rank only.
        rank: the rank that works.
        limit_s: seconds that the others wait in all.
        heartbeat_s: seconds between two signs of life of the working rank.
        silence_s: seconds without a sign of life after which the working rank counts as dead.
            Code that holds the interpreter's lock (a long json.load) is silent too.
        arrival_s: seconds that the others wait for the working rank to begin.

    Returns:
        What the work returned on the working rank, None elsewhere.

    Raises:
        ValueError: there is no such rank, or the silence is not longer than the heartbeat.
        RuntimeError: on a waiting rank: the work failed, or its rank is dead or too late. The
            working rank raises what the work raised.
    """
    if not 0 <= rank < collectives.world_size():
        raise ValueError(f"rank {rank} is not one of the {collectives.world_size()} ranks")
    if silence_s <= heartbeat_s:
        raise ValueError(
            f"silence_s must exceed heartbeat_s, but is {silence_s:g} and that is {heartbeat_s:g}"
        )
    if collectives.world_size() == 1:
        return work()
    name = f"run_on_rank/{next(_calls)}"
    if collectives.rank() == rank:
        return _work(work, open_store(name), open_store(name), heartbeat_s)
    try:
        store = open_store(name)
        verdict = _await_end(store, rank, limit_s, silence_s, arrival_s)
        forget(store, _KEYS)
    except dist.DistError as error:
        raise LostRankError(
            f"rank {rank} was to work, but the store on which ranks meet is gone: the process that "
            f"held it has ended, and its log says why ({reason(error)})"
        ) from error
    if verdict != _DONE:
        failure = LostRankError(f"rank {rank} {verdict}")
        # The working rank has the error itself, and tells it.
        failure.told_elsewhere = verdict.startswith(_FAILED)
        raise failure
    return None


def _work(work: Callable[[], T], store: Store, heartbeat_store: Store, heartbeat_s: float) -> T:
    try:
        with _heartbeat(heartbeat_store, heartbeat_s):
            result = work()
    except BaseException as error:
        try:
            store.set(_END, f"{_FAILED} ({type(error).__name__}): {error}")
            forget(store, _KEYS)
        except RuntimeError as lost:
            log.warning("the other ranks could not be told of the failure: %s", reason(lost))
        raise
    store.set(_END, _DONE)
    forget(store, _KEYS)
    return result


@contextlib.contextmanager
def _heartbeat(store: Store, heartbeat_s: float) -> Iterator[None]:
    """Beat in a thread of its own, with a client of its own, until the body ends."""
    ended = threading.Event()

    def beat() -> None:
        for number in itertools.count(1):
            try:
                store.set(_BEAT, str(number))
            except RuntimeError as error:
                log.warning("the heartbeat ends, the store is gone: %s", reason(error))
                return
            if ended.wait(heartbeat_s):
                return

    thread = threading.Thread(target=beat, name="dq-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(heartbeat_s)


def _await_end(store: Store, rank: int, limit_s: float, silence_s: float, arrival_s: float) -> str:
    """Return the verdict of the working rank; the clock that judges silence is this rank's own."""
    begin = heard = time.monotonic()
    beat = b""
    for _ in pauses():
        if store.check([_END]):
            break
        latest = store.get(_BEAT) if store.check([_BEAT]) else b""
        now = time.monotonic()
        if latest != beat:
            beat, heard = latest, now
        if now - begin > limit_s:
            raise LostRankError(f"rank {rank} was still at work after the limit of {limit_s:g} s")
        if beat and now - heard > silence_s:
            raise LostRankError(
                f"rank {rank} gave no sign of life for {silence_s:g} s while it worked; it was "
                "most likely killed (out of memory?), its log says why"
            )
        if not beat and now - begin > arrival_s:
            raise LostRankError(
                f"rank {rank} did not begin its work within {arrival_s:g} s; look at its log"
            )
    return store.get(_END).decode()
