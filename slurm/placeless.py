"""The environment without the variables that make a process a rank, a task or a job."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# torchrun's variables of a rank; each task of a job gets its own.
RANK_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK",
              "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME")  # fmt: skip
_NAMES = (*RANK_NAMES, "MASTER_ADDR", "MASTER_PORT")
_PREFIXES = (
    "SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "TORCHELASTIC_", "OMPI_COMM_WORLD_", "PMI_",
    "PMIX_", "MV2_COMM_WORLD_", "JSM_NAMESPACE_", "FLUX_JOB_", "FLUX_TASK_", "HOROVOD_",
)  # fmt: skip
# Variables with which Slurm's commands find the cluster and authenticate, wherever they run.
_KEPT = ("SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")


def rank_variables_removed(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables without those of an allocation, a step, a rank or a job."""
    return {
        name: value
        for name, value in environ.items()
        if name in _KEPT or not (name in _NAMES or name.startswith(_PREFIXES))
    }


@contextmanager
def without_rank_variables(more: Mapping[str, str] | None = None) -> Iterator[None]:
    """Hide these variables in the body, and add others; afterwards everything is as before.

    A shell may be in an allocation, or have the variables of one that has ended.
    """
    former = dict(os.environ)
    wanted = {**rank_variables_removed(former), **(more or {})}
    os.environ.clear()
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(former)
