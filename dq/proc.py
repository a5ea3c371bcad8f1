"""What Linux says of a process and of this boot, in ``/proc``."""

from __future__ import annotations

import os
from pathlib import Path

# Places in ``/proc/PID/stat`` after the name, which may contain anything: see proc(5).
_STATE, _PARENT, _BEGAN = 0, 1, 19


def began_of(pid: int) -> int | None:
    """Return when a live process started, in ticks since the boot; pids are reused."""
    fields = _stat_of(pid)
    return None if not fields or fields[_STATE] in ("Z", "X") else int(fields[_BEGAN])


def parent_of(pid: int) -> int | None:
    """Return the pid of a process's parent; None if the process is not visible."""
    fields = _stat_of(pid)
    return int(fields[_PARENT]) if fields else None


def environ_of(pid: int) -> dict[str, str]:
    """Return the variables that a process was started with; none if they are not readable."""
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in os.fsdecode(content).split("\0") if "=" in entry)
    return {name: value for name, _, value in pairs}


def boot_id() -> str:
    """Return the id of this boot of the machine, which its containers share; empty if unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _stat_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
