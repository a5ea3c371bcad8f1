"""A process by a name that no later one has, and whether it still lives."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def process_name(pid: int) -> str:
    """Return ``host:pid:start``; the start tells it from a later process of the same number."""
    return f"{socket.gethostname()}:{pid}:{_start_of(pid)}"


def pid_of(name: str) -> int | None:
    """Return the number of a process that lives on this machine, None where it does not."""
    host, _, rest = name.rpartition(":")[0].rpartition(":")
    if not rest.isdecimal() or host != socket.gethostname():
        return None
    return int(rest) if name == process_name(int(rest)) and _start_of(int(rest)) else None


def _start_of(pid: int) -> str:
    """Return when it began, in ticks since the machine did; empty for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def is_of_this_host(name: str) -> bool:
    """Tell whether a process of this name can be looked at here."""
    return name.rpartition(":")[0].rpartition(":")[0] == socket.gethostname()


def this_process() -> str:
    """Return the name of the calling process."""
    return process_name(os.getpid())
