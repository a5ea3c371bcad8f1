"""Create and destroy the process group."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import Store

from dq.dist.errors.lost import LostRankError
from dq.dist.errors.notes import note
from dq.dist.group.early_failure import (
    OtherRankMistakeError,
    OtherRankStartError,
    raise_reported_failure,
)
from dq.dist.group.presence import watchable
from dq.dist.rendezvous.environment import Environment
from dq.dist.rendezvous.meeting_place import open_meeting_place, read_address
from dq.dist.rendezvous.sequence import open_meeting
from dq.dist.rendezvous.store import meet, open_store, pauses

log = logging.getLogger(__name__)

_FAILED, _GONE = "failed", "gone"
_END_LIMIT_S = 5.0
_FAREWELL_S = 1.0


@contextlib.contextmanager
def process_group(
    environment: Environment,
    *,
    device: torch.device,
    shares_device: bool = False,
    timeout_s: float = 1800.0,
    arrival_s: float = 300.0,
    name: str = "ranks",
) -> Iterator[None]:
    """Join all ranks into a process group for the body; do nothing in a single process.

    Every rank must call it. The ranks find each other through MASTER_ADDR and MASTER_PORT. After
    the body they leave together, rank 0 last, because it may hold the store of the others. If the
    body raised, this rank leaves at once, waits for nobody and tells those that already wait.

    Args:
        environment: Rank of this process.
        device: The CPU for gloo; "cuda:N" for NCCL, plus gloo for CPU tensors.
        shares_device: Several ranks use this GPU; gloo carries its tensors, because NCCL refuses.
        timeout_s: Time-out of each collective, in seconds.
        arrival_s: Seconds that the ranks wait for each other at the start.
        name: Name of the group; a second group of the same processes under one torchrun needs
            another name.

    Raises:
        ValueError: The device is neither the CPU nor a CUDA device with its index; MASTER_ADDR or
            MASTER_PORT is missing or wrong; or another rank could not start because of a mistake of
            the user.
        NoMeetingError: There is no store at the address.
        LostRankError: Some ranks did not arrive; the message names them.
    """
    if environment.world_size == 1:
        yield
        return
    backend = "gloo" if device.type == "cpu" or shares_device else "cpu:gloo,cuda:nccl"
    _begin(environment, device, backend, timeout_s, arrival_s, name)
    store: Store | None = None
    try:
        store = open_store("process_group")
        with watchable():
            # A client that is connected now notices at once when its server dies later.
            open_meeting("the beginning")
            yield
    except BaseException:
        _leave_at_once(backend, store)
        raise
    _leave_together(environment, backend, store, timeout_s)


def _begin(
    environment: Environment,
    device: torch.device,
    backend: str,
    timeout_s: float,
    arrival_s: float,
    name: str,
) -> None:
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and device.index is None):
        raise ValueError(f"the device of a rank is cpu or cuda:N, but is {device}")
    address = ":".join(map(str, read_address(os.environ)))
    try:
        store = open_meeting_place(environment, arrival_s, name)
        _await_all(store, environment, arrival_s)
        store.set_timeout(timedelta(seconds=timeout_s))
        dist.init_process_group(
            backend,
            store=store,
            rank=environment.rank,
            world_size=environment.world_size,
            timeout=timedelta(seconds=timeout_s),
            device_id=device if "nccl" in backend else None,
        )
    except (_AbsentError, OtherRankStartError, OtherRankMistakeError):
        raise
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise NoMeetingError(
            f"rank {environment.rank} of {environment.world_size} found no process group at "
            f"MASTER_ADDR:MASTER_PORT {address!r} ({reason}); check that both are the same on "
            "every rank, that the address is that of rank 0's node, that the port is free on that "
            "node and open between nodes, and that every rank has started"
        ) from error


class _AbsentError(LostRankError):
    """Some ranks did not arrive."""


class NoMeetingError(RuntimeError):
    """The ranks did not find each other.

    Its own type, because a plain RuntimeError about a time-out would be explained as the silence of
    a rank in a collective.
    """


def _await_all(store: Store, environment: Environment, arrival_s: float) -> None:
    """Wait for every rank, and name those that did not come."""
    names = [f"arrived/{rank}" for rank in range(environment.world_size)]
    if store.add(names[environment.rank], 1) > 1:
        raise RuntimeError("this rank has already joined in this start of the job")
    store.add("arrivals", 1)
    end = time.monotonic() + arrival_s
    for _ in pauses(0.2):
        if store.add("arrivals", 0) >= environment.world_size:
            return
        raise_reported_failure(store, environment)
        if time.monotonic() > end:
            break
    missing = [rank for rank, name in enumerate(names) if not store.check([name])]
    shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    error = _AbsentError(
        f"rank {shown} of {environment.world_size} did not arrive within {arrival_s:g} s; look at"
        " the log of that rank and node, or wait longer with --arrival-timeout"
    )
    # One of the ranks that are here prints it; without a group they use the store to choose which.
    first = min(set(range(len(names))) - set(missing))
    note(error, reported=environment.rank != first)
    if environment.is_main:
        time.sleep(_FAREWELL_S)  # The others read the same from the store, which rank 0 holds.
    raise error


def _leave_together(environment: Environment, backend: str, store: Store, timeout_s: float) -> None:
    server = distributed_c10d._get_default_store()
    try:
        late = meet(store, limit_s=timeout_s, unless=_FAILED)
        if late:
            log.warning("rank %s did not reach the end with this one", ", ".join(map(str, late)))
            _leave_at_once(backend, store)
            return
        dist.destroy_process_group()
        store.add(_GONE, 1)
        others = environment.world_size - 1
        end = time.monotonic() + _END_LIMIT_S
        for _ in pauses(0.2):
            if not environment.is_main or store.add(_GONE, 0) > others or time.monotonic() > end:
                break
    except dist.DistError as error:
        log.warning("the store ended before this rank: %s", str(error).partition("\n")[0])
        if dist.is_initialized():
            _leave_at_once(backend, None)
    del server  # On rank 0 perhaps the server itself: it had to outlive the group.


def _leave_at_once(backend: str, store: Store | None) -> None:
    """Tell the ranks that wait at the end, and destroy the group, in a thread: both may block.

    Gloo waits for collectives in progress, which no other rank may ever join. The process can
    continue, or end, while the thread still waits. The group is destroyed also if nobody can be
    told, because the store, None if there was none, may be gone.
    """

    def leave() -> None:
        try:
            if store is not None:
                store.set(_FAILED, "")
        except RuntimeError as error:
            log.warning("the other ranks could not be told: %s", str(error).partition("\n")[0])
        try:
            if "nccl" in backend:
                distributed_c10d._abort_process_group()
            else:
                dist.destroy_process_group()
        except (RuntimeError, ValueError) as error:
            log.warning("the process group did not end well: %s", str(error).partition("\n")[0])

    thread = threading.Thread(target=leave, name="dq-leave", daemon=True)
    thread.start()
    thread.join(_END_LIMIT_S)
    if thread.is_alive():
        log.warning("the process group still waits for a collective; it is abandoned")
