"""The environment: what torchrun and Slurm say, and what is refused."""

from dataclasses import replace

import pytest

from dq.dist.environment import Environment, read_environment

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NNODES": "2",
    "SLURM_TASKS_PER_NODE": "4(x2)",
}
SIXTH_OF_EIGHT = Environment(
    rank=5, world_size=8, local_rank=1, local_world_size=4, node=1, num_nodes=2
)


def test_nothing_set_means_alone() -> None:
    assert read_environment({}) == Environment()
    assert read_environment({}).is_main


def test_torchrun_and_slurm_say_the_same() -> None:
    assert read_environment(TORCHRUN) == SIXTH_OF_EIGHT
    assert read_environment(SLURM) == SIXTH_OF_EIGHT
    assert not SIXTH_OF_EIGHT.is_main


def test_torchrun_inside_slurm_wins() -> None:
    inside = SLURM | {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "1(x2)"}
    assert read_environment(inside | TORCHRUN) == SIXTH_OF_EIGHT


def test_one_slurm_task_or_a_shell_in_an_allocation_is_alone() -> None:
    assert read_environment(SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) == Environment()
    assert read_environment({"SLURM_NTASKS": "8", "SLURM_NNODES": "2"}) == Environment()


@pytest.mark.parametrize(
    ("text", "node", "count"),
    [("4(x2)", 1, 4), ("5,3", 0, 5), ("5,3", 1, 3), ("", 1, 4), ("4,4", 0, 4)],
)
def test_slurm_places_tasks_on_nodes(text: str, node: int, count: int) -> None:
    environ = SLURM | {"SLURM_TASKS_PER_NODE": text, "SLURM_NODEID": str(node)}
    assert read_environment(environ).local_world_size == count


def test_the_tasks_of_the_step_win_over_those_of_the_job() -> None:
    step = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2,6"}
    assert read_environment(step).local_world_size == 6


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
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, "but not SLURM_LOCALID.* with srun"),
        (SLURM | {"SLURM_TASKS_PER_NODE": "4"}, r"\('4'\) does not place 8 tasks on 2 nodes"),
        (SLURM | {"SLURM_TASKS_PER_NODE": "4x2"}, "must read like"),
        (SLURM | {"SLURM_NNODES": "0"}, "does not place 8 tasks on 0 nodes"),
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
