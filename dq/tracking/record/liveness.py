"""Whether the process that writes a run still lives, as far as it can be seen from here."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Mapping
from typing import Any

from dq.proc import began_of, boot_id

# If the process is not visible: an epoch's validation may take long, so be patient.
SILENT_S = 3600.0


def this_process() -> dict[str, Any]:
    """Return what identifies this process: pid, start time, machine and its boot."""
    pid = os.getpid()
    return {"host": platform.node(), "boot": boot_id(), "space": _space(), "pid": pid,
            "began": began_of(pid)}  # fmt: skip


def state_of(process: Mapping[str, Any], written: float, *, now: float | None = None) -> str:
    """Return the state of a run that has not recorded its end.

    Args:
        process: From `this_process`, where the run started; empty if unknown.
        written: When the newest of its files was written, seconds since 1970.
        now: Seconds since 1970; the time of the call by default.

    Returns:
        ``running``; ``died`` if the process is known to be gone; ``silent for 5 h`` if it is not
        visible (another machine, another container) and nothing was written for long. Only this
        last state depends on clocks: the reader's and the file system's.
    """
    here = this_process()
    if process.get("host") == here["host"] and process.get("boot") != here["boot"]:
        return "died"  # The machine has been rebooted since.
    if all(process.get(name) == here[name] for name in ("boot", "space")) and here["boot"]:
        began = began_of(int(process.get("pid") or 0))
        return "running" if began is not None and began == process.get("began") else "died"
    quiet = (time.time() if now is None else now) - written
    return f"silent for {quiet / 3600:.0f} h" if quiet > SILENT_S else "running"


def _space() -> str:
    """Return the PID namespace of this process: a container has its own."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""
