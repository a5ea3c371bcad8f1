"""Detect whether torchrun or Slurm has started this job before."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

from dq.proc import began_of

# Both count how often they have restarted a job after a failure.
_COUNTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


def restart_counted() -> bool:
    """Return whether torchrun or Slurm says that the job has run before."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in _COUNTS)


def torchrun_agent() -> str | None:
    """Identify the torchrun that started this process, the same at each restart; None without one.

    torchrun does not count restarts caused by a joining node. But it outlives them, so a checkpoint
    written under the same torchrun belongs to the same job.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    parent = os.getppid()
    began = began_of(parent)
    return None if began is None else f"{socket.gethostname()}:{parent}:{began}"


def is_known_agent(agents: Iterable[str | None], known: Iterable[str]) -> bool:
    """Return whether one of this job's agents is among those that wrote a checkpoint."""
    return bool({name for name in agents if name} & set(known))
