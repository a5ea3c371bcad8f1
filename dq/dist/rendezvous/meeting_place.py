"""The store before there is a process group: torchrun's, or one that rank 0 holds."""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from dq.dist.rendezvous.environment import Environment

TRY_S, TRY_EVERY_S = 3.0, 0.2


def is_agents_store() -> bool:
    """Whether torchrun's agent holds the store, so that it outlives the ranks."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def open_meeting_place(environment: Environment, limit_s: float, name: str = "ranks") -> Store:
    """Open the store of torchrun's agent, or one that rank 0 holds.

    torch's own function waits for all ranks inside the store and cannot say which are missing.

    Args:
        environment: Rank of this process.
        limit_s: Seconds to wait for the process that holds the store.
        name: Name of this use; a second use by the same processes needs another name.

    Returns:
        A client with its own key prefix for this name and this start of the job.

    Raises:
        ValueError: MASTER_ADDR or MASTER_PORT is missing.
        OSError: There is no store at that address.
        RuntimeError: Whatever answers at that address is not a store.
    """
    for variable in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(variable):
            raise ValueError(f"environment variable {variable} expected, but not set")
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if is_agents_store() else "0"
    holds = environment.is_main and not is_agents_store()
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
    # When a node joins, torchrun starts all ranks again with the same attempt number.
    return PrefixStore(f"dq/attempt_{attempt}/of_{environment.world_size}/{name}", store)


def _await_listener(host: str, port: int, limit_s: float) -> None:
    """Wait until the port is open: torch's client would print its C++ frames for each try."""
    end = time.monotonic() + limit_s
    while True:
        try:
            socket.create_connection((host, port), timeout=TRY_S).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise OSError(f"{error.strerror or error}, for {limit_s:g} s") from error
        time.sleep(TRY_EVERY_S)
