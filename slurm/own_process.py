"""Unique names of processes, and whether a named process still lives."""

from __future__ import annotations

import os
import socket

from dq.proc import began_of


def process_name(pid: int) -> str:
    """Return ``host:pid:start``; the start distinguishes it from a later process with that pid."""
    return f"{socket.gethostname()}:{pid}:{_start_of(pid)}"


def pid_of(name: str) -> int | None:
    """Return the pid of a process that lives on this machine, None if it does not."""
    host, _, rest = name.rpartition(":")[0].rpartition(":")
    if not rest.isdecimal() or host != socket.gethostname():
        return None
    return int(rest) if name == process_name(int(rest)) and _start_of(int(rest)) else None


def _start_of(pid: int) -> str:
    """Return when it started, in ticks since the boot; empty if it has ended."""
    began = began_of(pid)
    return "" if began is None else str(began)


def is_of_this_host(name: str) -> bool:
    """Return whether a process of this name can be checked on this machine."""
    return name.rpartition(":")[0].rpartition(":")[0] == socket.gethostname()


def this_process() -> str:
    """Return the name of the calling process."""
    return process_name(os.getpid())
