"""Work that one rank does while the others wait on the store, outside any collective.

Ranks that wait in a collective run into its time-out: a longer evaluation on the main rank alone
would end the job. Here they poll a key of the store instead, with gloo and NCCL alike, and watch
the working rank's process with `dq.dist.group.presence`. So a call that holds the GIL for minutes
(a long json.load) does not look like a dead process.
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

from dq.counted import counted
from dq.dist.errors.lost import LostRankError, lost_store, reason
from dq.dist.exchange import collectives
from dq.dist.group.presence import Connection, presence, read_key
from dq.dist.rendezvous.sequence import NAME, open_meeting
from dq.dist.rendezvous.store import forget, pauses
from dq.dist.work.retold import error_from_text, error_to_text

log = logging.getLogger(__name__)
T = TypeVar("T")

_BEAT, _END, _DONE = "beat", "end", "done"
_KEYS = (NAME, _BEAT, _END)
# A process that cannot be watched must send heartbeats from a thread, which the GIL may stop.
UNSEEN_S = 900.0


def run_on_rank(
    work: Callable[[], T],
    *,
    rank: int = 0,
    name: str | None = None,
    limit_s: float = 86400.0,
    heartbeat_s: float = 2.0,
    hung_s: float = 3600.0,
) -> T | None:
    """Do the work on one rank while all others wait, and return when it is done.

    Every rank must call it, at the same step. The work must not contain a collective.

    Args:
        work: What to do; called on one rank only.
        rank: The rank that works.
        name: Name of the work, the same on all ranks; by default the function's name and place.
        limit_s: Seconds that the others wait in total.
        heartbeat_s: Seconds between two heartbeats of the working rank's interpreter.
        hung_s: Seconds without a heartbeat, or before the first, after which a live process counts
            as hung.

    Returns:
        What the work returned on the working rank, None elsewhere.

    Raises:
        ValueError: There is no such rank; on a waiting rank also if the work raised one.
        RuntimeError: On a waiting rank, if the work failed, or its rank is dead or too late. The
            working rank raises what the work raised.
    """
    if not 0 <= rank < collectives.world_size():
        raise ValueError(
            f"there is no rank {rank}, only {counted(collectives.world_size(), 'rank[s]')}"
        )
    if collectives.world_size() == 1:
        return work()
    try:
        store = open_meeting(f"{name or name_of(work)} on rank {rank}")
        here = presence()
    except dist.DistError as error:
        raise _without_store(rank, error) from error
    if collectives.rank() == rank:
        return _work(work, store, heartbeat_s)
    try:
        verdict = _await_end(store, here.of(rank), rank, limit_s, hung_s)
        forget(store, _KEYS)
    except dist.DistError as error:
        raise _without_store(rank, error) from error
    if verdict != _DONE:
        raise error_from_text(verdict, rank)
    return None


def name_of(work: Callable[[], object]) -> str:
    """Return a function's name and place, which are the same on all ranks."""
    code = getattr(work, "__code__", None)
    line = f":{code.co_firstlineno}" if code is not None else ""
    return f"{work.__module__}.{getattr(work, '__qualname__', type(work).__name__)}{line}"


def _without_store(rank: int, error: Exception) -> LostRankError:
    return lost_store(error, f"rank {rank} was to work, but ")


def _work(work: Callable[[], T], store: Store, heartbeat_s: float) -> T:
    try:
        with _heartbeat(store, heartbeat_s):
            result = work()
    except BaseException as error:
        try:
            store.set(_END, error_to_text(error))
            forget(store, _KEYS)
        except RuntimeError as lost:
            log.warning("the other ranks could not be told of the failure: %s", reason(lost))
        raise
    store.set(_END, _DONE)
    forget(store, _KEYS)
    return result


@contextlib.contextmanager
def _heartbeat(store: Store, heartbeat_s: float) -> Iterator[None]:
    """Send heartbeats from a thread with its own store client, until the body ends."""
    ended = threading.Event()

    def beat() -> None:
        own: Store | None = None
        for number in itertools.count(1):
            if ended.wait(heartbeat_s):
                return
            try:
                own = own or store.clone()
                own.set(_BEAT, str(number))
            except RuntimeError as error:
                log.warning("the heartbeat ends, the store is gone: %s", reason(error))
                return

    thread = threading.Thread(target=beat, name="dq-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(heartbeat_s)


def _await_end(store: Store, worker: Connection, rank: int, limit_s: float, hung_s: float) -> str:
    """Return the result of the working rank; silence is measured with this rank's own clock."""
    begin = heard = time.monotonic()
    beat = b""
    for _ in pauses(0.5):
        if worker.is_gone():
            word = read_key(store, _END)
            if word is None:
                raise LostRankError(
                    f"rank {rank} was lost while the others waited for its work: its process has"
                    " ended, most likely killed (out of memory?), and its log says why"
                )
            return word.decode()
        if store.check([_END]):
            break
        latest = store.get(_BEAT) if store.check([_BEAT]) else b""
        now = time.monotonic()
        if latest != beat:
            beat, heard = latest, now
        if now - begin > limit_s:
            raise LostRankError(f"rank {rank} was still at work after the limit of {limit_s:g} s")
        allowed = hung_s if worker.is_open else min(hung_s, UNSEEN_S)
        if now - heard > allowed:
            raise LostRankError(
                f"rank {rank} gave no sign of life for {allowed:g} s while the others waited for"
                " its work; it hangs, and its log says where"
            )
    return store.get(_END).decode()
