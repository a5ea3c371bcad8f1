"""Whether the process that writes a run still lives, as far as can be told from here."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Without a look at the process: an epoch's validation may take long, a day of silence is another.
SILENT_S = 3600.0


def this_process() -> dict[str, Any]:
    """Return what tells this process from all others: number, beginning, machine, its boot."""
    pid = os.getpid()
    return {"host": platform.node(), "boot": _boot(), "space": _space(), "pid": pid,
            "began": began_of(pid)}  # fmt: skip


def state_of(process: Mapping[str, Any], written: float, *, now: float | None = None) -> str:
    """Return what a run is that has not said how it ended.

    Args:
        process: What `this_process` said where the run began; empty when it is not known.
        written: When the newest of its files was written, seconds since 1970.
        now: Seconds since 1970; the time of the call where it is left out.

    Returns:
        ``running``; ``died`` where the process is known to be gone; ``silent for 5 h`` where it
        cannot be looked at (another machine, another container) and nothing was written for long.
        That last one is all that rests on clocks: the reader's, and the file system's.
    """
    here = this_process()
    if process.get("host") == here["host"] and process.get("boot") != here["boot"]:
        return "died"  # The machine has been started anew since.
    if all(process.get(name) == here[name] for name in ("boot", "space")) and here["boot"]:
        began = began_of(int(process.get("pid") or 0))
        return "running" if began is not None and began == process.get("began") else "died"
    quiet = (time.time() if now is None else now) - written
    return f"silent for {quiet / 3600:.0f} h" if quiet > SILENT_S else "running"


def _boot() -> str:
    """Return what each start of a machine gives itself, shared by its containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _space() -> str:
    """Return in which space of process numbers this is: a container has its own."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def began_of(pid: int) -> int | None:
    """Return when a living process began, in ticks since the boot; numbers are used again."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])
