"""The place of this process among the ranks of its job, read once from the environment."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

_TORCHRUN = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
)
_SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NNODES")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Name the place of one process; the defaults are a process alone.

    Args:
        rank: number of this process among all of the job, from 0.
        world_size: number of processes of the job.
        local_rank: number of this process among those of its node, from 0.
        local_world_size: number of processes on this node.
        node: number of this node, from 0.
        num_nodes: number of nodes of the job.

    Raises:
        ValueError: the numbers contradict each other; the line names the first that does.
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
        """Tell whether this is the main rank, rank 0."""
        return self.rank == 0


def read_environment(environ: Mapping[str, str] = os.environ) -> Environment:
    """Read the place of this process as torchrun, else Slurm's srun, wrote it; else it is alone.

    torchrun's variables win, since a torchrun started by srun sees both. Slurm's count only when
    they speak of more than one task, so that a single process in an allocation is alone.

    Raises:
        ValueError: some variables are missing, are not whole numbers or contradict each other.
    """
    if any(name in environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):
        _refuse_missing(environ, _TORCHRUN, "torchrun")
        rank, world_size, local_rank, local_world_size, node, num_nodes = (
            _number(environ, name) for name in _TORCHRUN
        )
    elif "SLURM_PROCID" in environ and _number(environ, "SLURM_NTASKS", 1) > 1:
        _refuse_missing(environ, _SLURM, "srun")
        rank, world_size, local_rank, node, num_nodes = (_number(environ, name) for name in _SLURM)
        local_world_size = _slurm_tasks_on(node, world_size, num_nodes, environ)
    else:
        return Environment()
    return Environment(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        node=node,
        num_nodes=num_nodes,
    )


def _refuse_missing(environ: Mapping[str, str], names: tuple[str, ...], starter: str) -> None:
    missing = [name for name in names if name not in environ]
    if missing:
        given = [name for name in names if name in environ]
        raise ValueError(
            f"the environment has {', '.join(given)} but not {', '.join(missing)}; "
            f"start the job with {starter}, or unset them all to run alone"
        )


def _number(environ: Mapping[str, str], name: str, default: int = 0) -> int:
    text = environ.get(name, str(default))
    if not re.fullmatch(r"[0-9]+", text.strip()):
        raise ValueError(f"{name} must be a whole number of at least 0, but is {text!r}")
    return int(text)


def _slurm_tasks_on(node: int, world_size: int, num_nodes: int, environ: Mapping[str, str]) -> int:
    """Count the tasks of one node, from a list such as "4(x2),3": 4 on two nodes, 3 on the next."""
    text = environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_TASKS_PER_NODE", ""))
    counts: list[int] = []
    for part in text.split(",") if text else []:
        match = re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", part.strip())
        if match is None:
            raise ValueError(f"SLURM_TASKS_PER_NODE must read like 4(x2),3, but is {text!r}")
        counts += [int(match[1])] * int(match[2] or 1)
    if not counts and world_size % num_nodes == 0:
        return world_size // num_nodes
    if sum(counts) != world_size or len(counts) != num_nodes or node >= num_nodes:
        raise ValueError(
            f"SLURM_TASKS_PER_NODE ({text!r}) does not place {world_size} tasks on "
            f"{num_nodes} nodes; start the job with srun --ntasks-per-node"
        )
    return counts[node]
