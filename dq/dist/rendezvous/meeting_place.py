"""The store before there is a process group: torchrun's, or one that rank 0 holds."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Mapping
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
        ValueError: MASTER_ADDR or MASTER_PORT is missing or invalid.
        OSError: There is no store at that address.
        RuntimeError: Whatever answers at that address is not a store.
    """
    host, port = read_address(os.environ)
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


def read_address(environ: Mapping[str, str]) -> tuple[str, int]:
    """Return host and port of the store.

    Raises:
        ValueError: MASTER_ADDR or MASTER_PORT is missing or invalid.
    """
    mend = "set it to the {} of rank 0, the same on every rank, or start the ranks with torchrun"
    host, port = (environ.get(name, "").strip() for name in ("MASTER_ADDR", "MASTER_PORT"))
    # A host name has none of these characters: a URL or "host:port" would be looked up in vain. An
    # IPv6 address has several colons.
    if not host or re.search(r"[\s/]", host) or host.count(":") == 1:
        said = f"is {host!r}" if host else "is not set"
        raise ValueError(f"MASTER_ADDR {said}; {mend.format('host name or address')}")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 1 << 16:
        said = f"is {port!r}" if port else "is not set"
        free = "port from 1 to 65535 that is free on the host"
        raise ValueError(f"MASTER_PORT {said}; {mend.format(free)}")
    return host, int(port)


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
