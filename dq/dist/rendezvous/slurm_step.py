"""Rank of this process among the tasks of a Slurm step, from the variables of srun."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dq.counted import counted
from dq.dist.rendezvous.numbers import number_in
from dq.proc import environ_of, parent_of

_NAMES = (
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_STEP_NUM_NODES",
)
# Step numbers from here on are steps that Slurm creates itself: a batch script, an interactive
# shell.
_FIRST_SPECIAL = 0xFFFFFFF0
_ALONE = "unset SLURM_STEP_ID to run alone"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmStep:
    """One task of a step that has several.

    Attributes:
        rank: Index of this task among all of the step, from 0.
        tasks: Number of tasks of the step.
        local_rank: Index among those of its node, from 0.
        local_tasks: Number of tasks of the step on this node.
        node: Index of this node among those of the step, from 0.
        nodes: Number of nodes of the step.
    """

    rank: int
    tasks: int
    local_rank: int
    local_tasks: int
    node: int
    nodes: int


def slurm_step(environ: Mapping[str, str], *, pid: int | None = None) -> SlurmStep | None:
    """Return this process's task in a step of several tasks, or None if it is in no such step.

    An allocation also sets variables (SLURM_NTASKS). They are in the shell of salloc and in a batch
    script, which even has SLURM_PROCID, and neither is a rank. Everything started in a step
    inherits the step's variables, also other jobs. So they are compared with each other and with
    the ancestors of this process.

    Args:
        environ: All variables.
        pid: Id of this process.

    Raises:
        ValueError: Variables of a step are missing, are not numbers, contradict each other, or
            belong to a step of which this process is not a task.
    """
    text = environ.get("SLURM_STEP_ID", "")
    if not text or "SLURM_PROCID" not in environ or _is_special(text):
        return None
    if number_in(environ, "SLURM_STEP_NUM_TASKS", 1) == 1:
        return None
    missing = [name for name in _NAMES if name not in environ]
    if missing:
        raise ValueError(
            f"the environment has SLURM_STEP_ID but not {', '.join(missing)}; start the job with"
            f" srun, or {_ALONE}"
        )
    rank, tasks, local_rank, node, nodes = (number_in(environ, name) for name in _NAMES)
    local_tasks = _tasks_on(node, tasks, nodes, environ)
    _refuse_contradiction(environ, rank, tasks, local_rank, local_tasks, nodes)
    _refuse_stranger(environ, os.getpid() if pid is None else pid, tasks)
    return SlurmStep(
        rank=rank,
        tasks=tasks,
        local_rank=local_rank,
        local_tasks=local_tasks,
        node=node,
        nodes=nodes,
    )


def _is_special(step: str) -> bool:
    """Return whether srun did not create this step for ranks."""
    return not step.isdecimal() or int(step) >= _FIRST_SPECIAL


def _refuse_contradiction(
    environ: Mapping[str, str],
    rank: int,
    tasks: int,
    local_rank: int,
    local_tasks: int,
    nodes: int,
) -> None:
    """Compare what srun sets twice: a job submitted inside a step inherits only half of it."""
    for name, wanted, of in (
        ("SLURM_NTASKS", tasks, "SLURM_STEP_NUM_TASKS"),
        ("SLURM_NNODES", nodes, "SLURM_STEP_NUM_NODES"),
    ):
        found = number_in(environ, name, wanted)
        if found != wanted:
            raise ValueError(
                f"{name} is {found} and {of} {wanted}: these variables are left over from another"
                " step, or srun was told to --preserve-env; start the ranks with srun or torchrun,"
                f" or {_ALONE}"
            )
    of_node = environ.get("SLURM_GTIDS", "").split(",")
    if of_node != [""] and (len(of_node) != local_tasks or str(rank) not in of_node):
        raise ValueError(
            f"SLURM_GTIDS ({environ['SLURM_GTIDS']}) does not have the"
            f" {counted(local_tasks, 'task[s]')} of this node with SLURM_PROCID {rank} among"
            " them: these variables are left over from another step; start the ranks with srun"
            f" or torchrun, or {_ALONE}"
        )
    if local_rank >= local_tasks:
        raise ValueError(
            f"SLURM_LOCALID is {local_rank} on a node with {counted(local_tasks, 'task[s]')}; start"
            f" the ranks with srun or torchrun, or {_ALONE}"
        )


def _refuse_stranger(environ: Mapping[str, str], pid: int, tasks: int) -> None:
    """Refuse a process that only inherited the variables, such as one that outlived its step."""
    task = environ.get("SLURM_TASK_PID", "")
    if not task.isdecimal():
        return
    # A container with its own process ids starts inside the task and has its variables.
    first = environ_of(1).get("SLURM_TASK_PID")
    above = list(_ancestors(pid))
    if above and int(task) not in above and first != task:
        raise ValueError(
            f"SLURM_PROCID is that of a step of {counted(tasks, 'task[s]')} (process {task}), which"
            f" this process does not belong to; start the ranks with srun or torchrun, or {_ALONE}"
        )
    if "SLURM_PTY_PORT" in environ and int(task) != pid:
        raise ValueError(
            f"this shell is one of {counted(tasks, 'task[s]')} of srun --pty, and the others are"
            f" not ranks; start the ranks with srun --overlap or torchrun, or {_ALONE}"
        )


def _ancestors(pid: int) -> Iterable[int]:
    """Yield a process and its ancestors; nothing if they are not visible."""
    while pid > 0 and (parent := parent_of(pid)) is not None:
        yield pid
        pid = parent


def _tasks_on(node: int, tasks: int, nodes: int, environ: Mapping[str, str]) -> int:
    """Count the tasks of one node, from a list such as "4(x2),3": 4 on two nodes, 3 on the next."""
    text = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    counts: list[int] = []
    for part in text.split(",") if text else []:
        match = re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", part.strip())
        if match is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE must read like 4(x2),3, but is {text!r}")
        counts += [int(match[1])] * min(int(match[2] or 1), nodes + 1)
    if not counts and nodes > 0 and tasks % nodes == 0:
        return tasks // nodes
    if sum(counts) != tasks or len(counts) != nodes or node >= nodes:
        raise ValueError(
            f"SLURM_STEP_TASKS_PER_NODE ({text!r}) does not place"
            f" {counted(tasks, 'task[s]')} on {counted(nodes, 'node[s]')}; start the job with"
            " srun --ntasks-per-node"
        )
    return counts[node]
