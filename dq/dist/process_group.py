"""Where the process group begins and ends."""

import contextlib
import itertools
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

from dq.dist.environment import Environment
from dq.dist.store import meet, open_store, pauses

log = logging.getLogger(__name__)

_groups = itertools.count()
_FAILED, _GONE = "failed", "gone"
_END_LIMIT_S = 5.0


@contextlib.contextmanager
def process_group(
    environment: Environment, *, device: torch.device, timeout_s: float = 1800.0
) -> Iterator[None]:
    """Join all ranks into a process group for the body; alone do nothing at all.

    Every rank must call it. The ranks find each other through MASTER_ADDR and MASTER_PORT. After
    the body they leave together, rank 0 last, for it may hold the store of the others. When the
    body raised, this rank leaves at once, waits for nobody and tells those that already wait.

    Args:
        environment: the place of this process.
        device: the CPU for gloo; "cuda:N" for NCCL, with gloo beside it for tensors of the host.
        timeout_s: seconds that the rendezvous, and later each collective, may take.

    Raises:
        ValueError: the device is neither the CPU nor a CUDA device with its number.
        RuntimeError: the ranks did not find each other; the line says what to check.
    """
    if environment.world_size == 1:
        yield
        return
    _begin(environment, device, timeout_s)
    store = open_store(f"process_group/{next(_groups)}")
    try:
        yield
    except BaseException:
        _leave_at_once(device, store)
        raise
    _leave_together(environment, device, store, timeout_s)


def _begin(environment: Environment, device: torch.device, timeout_s: float) -> None:
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and device.index is None):
        raise ValueError(f"the device of a rank is cpu or cuda:N, but is {device}")
    address = ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    try:
        dist.init_process_group(
            "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
            rank=environment.rank,
            world_size=environment.world_size,
            timeout=timedelta(seconds=timeout_s),
            device_id=device if device.type == "cuda" else None,
        )
    except (ValueError, RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise RuntimeError(
            f"rank {environment.rank} of {environment.world_size} found no process group at "
            f"MASTER_ADDR:MASTER_PORT {address!r} ({reason}); check that both are set, the same on "
            "every rank, that the port is free on that node and open between nodes, and that "
            "every rank has started"
        ) from error


def _leave_together(
    environment: Environment, device: torch.device, store: Store, timeout_s: float
) -> None:
    server = distributed_c10d._get_default_store()
    try:
        late = meet(store, limit_s=timeout_s, unless=_FAILED)
        if late:
            log.warning("rank %s did not reach the end with this one", ", ".join(map(str, late)))
            _leave_at_once(device, store)
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
    del server  # On rank 0 the server itself, perhaps: it had to outlive the group.


def _leave_at_once(device: torch.device, store: Store) -> None:
    """Tell those that wait at the end, and drop the group, in a thread: both may block for long.

    Gloo waits for collectives under way, which no other rank may ever join; the process can go on,
    or end, while the thread still waits.
    """

    def leave() -> None:
        try:
            store.set(_FAILED, "")
            if device.type == "cuda":
                distributed_c10d._abort_process_group()
            else:
                dist.destroy_process_group()
        except (RuntimeError, ValueError) as error:
            log.warning("the process group did not end well: %s", str(error).partition("\n")[0])

    thread = threading.Thread(target=leave, name="dq-leave", daemon=True)
    thread.start()
    thread.join(_END_LIMIT_S)
    if thread.is_alive():
        log.warning("the process group still waits for a collective; it is left behind")
