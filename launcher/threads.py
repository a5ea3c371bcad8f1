"""How many CPU threads a rank computes with."""

from __future__ import annotations

import os
from collections.abc import Mapping

from dq.dist.rendezvous.environment import Environment
from dq.proc import environ_of

VARIABLE = "OMP_NUM_THREADS"


def threads_of(given: int | None, environment: Environment) -> int:
    """Return ``--threads``, else the user's OMP_NUM_THREADS, else a fair share of the cores.

    Raises:
        ValueError: One of them is no number of threads.
    """
    if given is not None:
        return _checked(given, "--threads")
    wanted = wanted_by_user(os.environ, environ_of(os.getppid()))
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


def _checked(value: int | str, name: str) -> int:
    # OpenMP takes a list, one number for each level of nesting; the first is that of a rank.
    text = str(value).partition(",")[0].strip()
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{name} is {value}; give a whole number of at least 1")
    return int(text)
