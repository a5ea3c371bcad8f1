"""The variables of torchrun and Slurm, and what is refused."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from dq.dist.rendezvous import slurm_step
from dq.dist.rendezvous.environment import Environment, read_environment

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
}
# Variables of salloc's shell, then also of a batch script, then of an srun task (Slurm 22.05).
ALLOCATION = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "8",
    "SLURM_NPROCS": "8",
    "SLURM_NNODES": "2",
    "SLURM_TASKS_PER_NODE": "4(x2)",
}
BATCH = ALLOCATION | {
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_GTIDS": "0",
    "SLURM_TASK_PID": str(os.getpid()),
}
SLURM = ALLOCATION | {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_GTIDS": "4,5,6,7",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_TASK_PID": str(os.getpid()),
}
ONE_TASK = BATCH | {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1",
}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}


def without(environ: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in names}


SIXTH_OF_EIGHT = Environment(
    rank=5, world_size=8, local_rank=1, local_world_size=4, node=1, num_nodes=2
)


def test_no_variables_mean_a_single_process() -> None:
    assert read_environment({}) == Environment()
    assert read_environment({}).is_main


def test_torchrun_and_slurm_say_the_same() -> None:
    assert read_environment(TORCHRUN) == SIXTH_OF_EIGHT
    assert read_environment(SLURM) == SIXTH_OF_EIGHT
    assert not SIXTH_OF_EIGHT.is_main


@pytest.mark.parametrize(
    "around",
    [ALLOCATION, BATCH, ONE_TASK, SLURM, MPIRUN],
    ids=["salloc", "batch", "srun of one", "srun", "mpirun"],
)
def test_torchrun_wins_wherever_it_was_started(around: dict[str, str]) -> None:
    assert read_environment(around | TORCHRUN) == SIXTH_OF_EIGHT


@pytest.mark.parametrize(
    "environ",
    [
        ALLOCATION,  # salloc's shell; one whose allocation has ended; ssh with its variables.
        {"SLURM_JOB_ID": "7"},  # ssh into a node, with pam_slurm_adopt.
        BATCH,  # A command in a batch script, without srun.
        ONE_TASK,  # srun --pty bash, where SLURM_NTASKS is the allocation's.
        SLURM | {"SLURM_STEP_ID": "4294967290"},  # salloc's shell as a step of Slurm's own.
        without(SLURM, "SLURM_STEP_ID"),
        MPIRUN | {"OMPI_COMM_WORLD_SIZE": "1"},
        {"PMI_RANK": "0", "PMI_SIZE": "1"},
    ],
)
def test_other_processes_are_single(environ: dict[str, str]) -> None:
    assert read_environment(environ) == Environment()


def test_variables_of_mpich_that_srun_sets_agree_with_its_own() -> None:
    assert read_environment(SLURM | {"PMI_RANK": "5", "PMI_SIZE": "8"}) == SIXTH_OF_EIGHT


@pytest.mark.parametrize(
    ("text", "node", "count"),
    [("4(x2)", 1, 4), ("5,3", 0, 5), ("5,3", 1, 3), ("", 1, 4), ("4,4", 0, 4)],
)
def test_slurm_places_tasks_on_nodes(text: str, node: int, count: int) -> None:
    environ = SLURM | {"SLURM_STEP_TASKS_PER_NODE": text, "SLURM_NODEID": str(node)}
    assert read_environment(without(environ, "SLURM_GTIDS")).local_world_size == count


def test_the_step_wins_over_the_allocation() -> None:
    more = {"SLURM_JOB_NUM_NODES": "4", "SLURM_JOB_NODELIST": "n[1-4]"}
    assert read_environment(SLURM | more) == SIXTH_OF_EIGHT


@pytest.mark.parametrize("inside", [False, True])
def test_variables_of_a_task_hold_for_its_child_processes(inside: bool) -> None:
    """A shell that outlives its step (screen, nohup) has them too, but is not a task."""
    task = str(os.getpid()) if inside else "4194304"
    code = "from dq.dist.rendezvous.environment import read_environment as r; print(r())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **SLURM, "SLURM_TASK_PID": task},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if inside:
        assert str(SIXTH_OF_EIGHT) in done.stdout
    else:
        assert "process 4194304), which this process does not belong to" in done.stderr


def test_a_container_with_process_numbers_of_its_own_keeps_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outside = SLURM | {"SLURM_TASK_PID": "4194304"}
    monkeypatch.setattr(slurm_step, "environ_of", lambda pid: outside if pid == 1 else {})
    assert read_environment(outside) == SIXTH_OF_EIGHT


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"RANK": "0"}, "has RANK but not WORLD_SIZE, LOCAL_RANK, .*start the job with torchrun"),
        (TORCHRUN | {"RANK": "8"}, "rank does not fit world size in Environment"),
        (TORCHRUN | {"LOCAL_RANK": "4"}, "local rank does not fit local world size"),
        (TORCHRUN | {"GROUP_RANK": "2"}, "node does not fit number of nodes"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "9"}, "local world size does not fit world size"),
        (TORCHRUN | {"WORLD_SIZE": "many"}, "WORLD_SIZE must be a whole number .* is 'many'"),
        (TORCHRUN | {"RANK": "-1"}, "RANK must be a whole number of at least 0"),
        (TORCHRUN | {"RANK": ""}, "RANK must be a whole number of at least 0, but is ''"),
        (without(SLURM, "SLURM_LOCALID"), "not SLURM_LOCALID.* with srun, or unset SLURM_STEP_ID"),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4"}, r"\('4'\) does not place 8 tasks on 2 nodes"),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4x2"}, "must read like"),
        (SLURM | {"SLURM_STEP_NUM_NODES": "0"}, "does not place 8 tasks on 0 nodes"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "x"}, "SLURM_STEP_NUM_TASKS must be a whole number"),
        # A batch script submitted inside a step inherits the step's environment.
        (SLURM | BATCH | {"SLURM_NTASKS": "2"}, "SLURM_NTASKS is 2 and SLURM_STEP_NUM_TASKS 8"),
        (SLURM | BATCH, r"SLURM_GTIDS \(0\) does not have the 4 tasks"),
        (SLURM | {"SLURM_NNODES": "1"}, "SLURM_NNODES is 1 and SLURM_STEP_NUM_NODES 2"),
        (SLURM | {"SLURM_PROCID": "1"}, "with SLURM_PROCID 1 among them"),
        (without(SLURM, "SLURM_GTIDS") | {"SLURM_LOCALID": "4"}, "SLURM_LOCALID is 4"),
        (without(SLURM, "SLURM_GTIDS") | {"SLURM_PROCID": "8"}, "rank does not fit world size"),
        (SLURM | {"SLURM_TASK_PID": "4194304"}, "process 4194304"),
        (SLURM | {"SLURM_TASK_PID": str(os.getppid()), "SLURM_PTY_PORT": "9"}, "srun --pty"),
        (MPIRUN, "Open MPI's mpirun has started 4 processes.* unset OMPI_COMM_WORLD_SIZE"),
        (ALLOCATION | MPIRUN, "mpirun has started 4"),
        (SLURM | MPIRUN, "mpirun has started 4"),  # mpirun's daemons are tasks of a step.
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "mpiexec has started 2"),
        (SLURM | {"PMI_RANK": "0", "PMI_SIZE": "2"}, "mpiexec has started 2"),
        ({"MV2_COMM_WORLD_SIZE": "2"}, "MVAPICH"),
        ({"JSM_NAMESPACE_SIZE": "2"}, "jsrun"),
        ({"FLUX_JOB_SIZE": "2"}, "flux"),
        ({"HOROVOD_SIZE": "2"}, "horovodrun"),
    ],
)
def test_partial_or_contradicting_values_are_refused_in_one_line(
    environ: dict[str, str], line: str
) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        read_environment(environ)
    assert "\n" not in str(caught.value)


def test_an_environment_made_by_hand_is_checked_too() -> None:
    with pytest.raises(ValueError, match="number of nodes does not fit world size"):
        replace(SIXTH_OF_EIGHT, num_nodes=9)
