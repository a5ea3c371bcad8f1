"""Whether torchrun or Slurm has started this job before."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path

# Both count how often they started a job again after a failure.
_COUNTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


def restart_counted() -> bool:
    """Tell whether whoever started this process says that the job has run before."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in _COUNTS)


def agent() -> str | None:
    """Name the torchrun that started this process, the same at each of its starts; None without.

    torchrun does not count the starts that a joining node brings about. But it outlives them, so
    a checkpoint that was written under the same one belongs to the same job.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    parent = os.getppid()
    try:
        began = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
    return f"{socket.gethostname()}:{parent}:{began}"


def is_one_of(agents: Iterable[str | None], known: Iterable[str]) -> bool:
    """Tell whether one of this job's agents is among those that a checkpoint was written under."""
    return bool({name for name in agents if name} & set(known))
