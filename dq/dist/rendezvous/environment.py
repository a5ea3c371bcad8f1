"""Rank, node and world size of this process, read once from the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from dq.dist.rendezvous.numbers import number_in
from dq.dist.rendezvous.slurm_step import SlurmStep, slurm_step

_TORCHRUN = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
)
# Launchers that tell a process how many there are, but not everything that a rank needs.
_OTHERS = {
    "OMPI_COMM_WORLD_SIZE": "Open MPI's mpirun",
    "PMI_SIZE": "mpiexec",
    "MV2_COMM_WORLD_SIZE": "MVAPICH's mpirun",
    "JSM_NAMESPACE_SIZE": "jsrun",
    "FLUX_JOB_SIZE": "flux",
    "HOROVOD_SIZE": "horovodrun",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Rank and node of one process; the defaults describe a single process.

    Args:
        rank: Index of this process among all of the job, from 0.
        world_size: Number of processes of the job.
        local_rank: Index of this process among those of its node, from 0.
        local_world_size: Number of processes on this node.
        node: Index of this node, from 0.
        num_nodes: Number of nodes of the job.

    Raises:
        ValueError: The numbers contradict each other; the message names the first contradiction.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node: int = 0
    num_nodes: int = 1

    def __post_init__(self) -> None:
        places = (
            ("rank", self.rank, "world size", self.world_size),
            ("local rank", self.local_rank, "local world size", self.local_world_size),
            ("node", self.node, "number of nodes", self.num_nodes),
            ("local world size", self.local_world_size - 1, "world size", self.world_size),
            ("number of nodes", self.num_nodes - 1, "world size", self.world_size),
        )
        for name, number, of_name, of in places:
            if not 0 <= number < of:
                raise ValueError(
                    f"{name} does not fit {of_name} in {self}; "
                    "start the job with torchrun or srun, which set them all"
                )

    @property
    def is_main(self) -> bool:
        """Return whether this is the main rank, rank 0."""
        return self.rank == 0


def read_environment(environ: Mapping[str, str] = os.environ) -> Environment:
    """Read the variables of torchrun, else those of srun; without either this is a single process.

    torchrun's variables win, because a torchrun started by srun sees both. Of Slurm's variables
    only those of a step count, because those of an allocation are in every shell inside it. If
    another launcher (mpirun) has started several processes, it is refused: each of them would
    otherwise do the whole job.

    Raises:
        ValueError: Some variables are missing, are not whole numbers or contradict each other, or
            the process was started by an unknown launcher.
    """
    if any(name in environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):
        return _of_torchrun(environ)
    step = slurm_step(environ)
    _refuse_others(environ, step)
    if step is None:
        return Environment()
    return Environment(
        rank=step.rank,
        world_size=step.tasks,
        local_rank=step.local_rank,
        local_world_size=step.local_tasks,
        node=step.node,
        num_nodes=step.nodes,
    )


def _of_torchrun(environ: Mapping[str, str]) -> Environment:
    missing = [name for name in _TORCHRUN if name not in environ]
    if missing:
        given = [name for name in _TORCHRUN if name in environ]
        raise ValueError(
            f"the environment has {', '.join(given)} but not {', '.join(missing)}; "
            "start the job with torchrun, or unset them all to run alone"
        )
    rank, world_size, local_rank, local_world_size, node, num_nodes = (
        number_in(environ, name) for name in _TORCHRUN
    )
    return Environment(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        node=node,
        num_nodes=num_nodes,
    )


def _refuse_others(environ: Mapping[str, str], step: SlurmStep | None) -> None:
    for name, starter in _OTHERS.items():
        size = environ.get(name, "").strip()
        # srun --mpi=pmi2 sets MPICH's variables in addition to its own.
        is_of_step = step is not None and name == "PMI_SIZE" and size == str(step.tasks)
        if size.isdecimal() and int(size) > 1 and not is_of_step:
            raise ValueError(
                f"{name} is {size}: {starter} has started {size} processes, which cannot find each"
                f" other that way; start the job with torchrun or srun, or unset {name} to run"
                " alone"
            )
