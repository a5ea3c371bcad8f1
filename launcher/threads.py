"""How many CPU threads a rank computes with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dq.dist.rendezvous.environment import Environment

VARIABLE = "OMP_NUM_THREADS"


def threads_of(given: int | None, environment: Environment) -> int:
    """Return ``--threads``, else the user's OMP_NUM_THREADS, else a fair share of the cores.

    Raises:
        ValueError: One of them is no number of threads.
    """
    if given is not None:
        return _checked(given, "--threads")
    wanted = wanted_by_user(os.environ, environ_of_starter())
    if wanted is not None:
        return _checked(wanted, VARIABLE)
    return max(1, len(os.sched_getaffinity(0)) // environment.local_world_size)


def wanted_by_user(environ: Mapping[str, str], starter: Mapping[str, str]) -> str | None:
    """Return OMP_NUM_THREADS where the user set it, and not torchrun.

    torchrun sets it to 1 for its ranks where it is unset, for all it knows of the machine. A rank
    cannot tell that from its own environment, but the one that torchrun was started with can.

    Args:
        environ: This process's own.
        starter: That with which the process that started this one was started.
    """
    by_torchrun = environ.get("TORCHELASTIC_RUN_ID") and environ.get(VARIABLE) == "1"
    if by_torchrun and starter and VARIABLE not in starter:
        return None
    return environ.get(VARIABLE) or None


def environ_of_starter() -> dict[str, str]:
    """Return the variables that this process's parent was started with; none if they are hidden."""
    try:
        content = Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in os.fsdecode(content).split("\0") if "=" in entry)
    return {name: value for name, _, value in pairs}


def _checked(value: int | str, name: str) -> int:
    # OpenMP takes a list, one number for each level of nesting; the first is that of a rank.
    text = str(value).partition(",")[0].strip()
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{name} is {value}; give a whole number of at least 1")
    return int(text)
