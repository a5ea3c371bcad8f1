"""Where ranks meet before there is a process group: torchrun's store, or one that rank 0 holds."""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from dq.dist.rendezvous.environment import Environment

TRY_S, TRY_EVERY_S = 3.0, 0.2


def is_of_agent() -> bool:
    """Whether torchrun's agent holds the store, and so outlives the ranks."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def open_meeting_place(environment: Environment, limit_s: float, name: str = "ranks") -> Store:
    """Open the store of torchrun's agent, or one that rank 0 holds.

    torch's own way waits inside the store for all ranks, and cannot say who is missing.

    Args:
        environment: The place of this process.
        limit_s: Seconds to wait for whoever holds the store.
        name: Of this meeting; a second one of the same processes needs another.

    Returns:
        A client whose keys are those of this meeting and this start of the job.

    Raises:
        ValueError: MASTER_ADDR or MASTER_PORT is missing.
        OSError: Nobody holds a store there.
        RuntimeError: What is there is no store.
    """
    for variable in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(variable):
            raise ValueError(f"environment variable {variable} expected, but not set")
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if is_of_agent() else "0"
    holds = environment.is_main and not is_of_agent()
    if not holds:
        _await_listener(host, port, limit_s)
    store = dist.TCPStore(  # type: ignore[attr-defined]  # torch's stubs do not name it
        host,
        port,
        environment.world_size,
        is_master=holds,
        timeout=timedelta(seconds=limit_s),
        wait_for_workers=False,
    )
    # A node that joins makes torchrun start all ranks again under the same attempt.
    return PrefixStore(f"dq/attempt_{attempt}/of_{environment.world_size}/{name}", store)


def _await_listener(host: str, port: int, limit_s: float) -> None:
    """Wait until somebody listens: torch's client would print its own frames for each try."""
    end = time.monotonic() + limit_s
    while True:
        try:
            socket.create_connection((host, port), timeout=TRY_S).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise OSError(f"{error.strerror or error}, for {limit_s:g} s") from error
        time.sleep(TRY_EVERY_S)
