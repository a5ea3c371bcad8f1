"""Choose the number of CPU threads of a rank."""

from __future__ import annotations

import os
from collections.abc import Mapping

from dq.dist.rendezvous.environment import Environment
from dq.proc import environ_of

VARIABLE = "OMP_NUM_THREADS"


def threads_of(given: int | None, environment: Environment) -> int:
    """Return ``--threads``, else the user's OMP_NUM_THREADS, else this rank's share of the cores.

    Raises:
        ValueError: ``--threads`` or OMP_NUM_THREADS is not a number of threads.
    """
    if given is not None:
        return _checked(given, "--threads")
    wanted = wanted_by_user(os.environ, environ_of(os.getppid()))
    if wanted is not None:
        return _checked(wanted, VARIABLE)
    return max(1, len(os.sched_getaffinity(0)) // environment.local_world_size)


def wanted_by_user(environ: Mapping[str, str], starter: Mapping[str, str]) -> str | None:
    """Return OMP_NUM_THREADS if the user has set it, and not torchrun.

    If it is unset, torchrun sets it to 1 for its ranks. A rank cannot see this in its own
    environment, but torchrun's environment shows it.

    Args:
        environ: The environment of this process.
        starter: The environment of the process that started this one.
    """
    by_torchrun = environ.get("TORCHELASTIC_RUN_ID") and environ.get(VARIABLE) == "1"
    if by_torchrun and starter and VARIABLE not in starter:
        return None
    return environ.get(VARIABLE) or None


def _checked(value: int | str, name: str) -> int:
    # OpenMP accepts a list, one number for each level of nesting; the first is for a rank.
    text = str(value).partition(",")[0].strip()
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{name} is {value}; give a whole number of at least 1")
    return int(text)
