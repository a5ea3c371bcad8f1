"""Ranks wait for each other outside any collective, but not for dead ranks."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from dq.dist.exchange import collectives
from dq.dist.work.all_here import wait_for_all_ranks
from tests.ranks import rank_outcomes


def come_late() -> float:
    if collectives.rank() == 1:
        time.sleep(5.0)
    wait_for_all_ranks("the results")
    wait_for_all_ranks("the next")
    return collectives.all_reduce_(torch.ones(1)).item()


@pytest.mark.slow
def test_a_late_rank_is_waited_for_longer_than_any_collective() -> None:
    outcomes = rank_outcomes(come_late, 3, group_timeout_s=2.0)
    assert [(o.result, o.error) for o in outcomes] == [(3.0, None)] * 3


def die_on(victim: int) -> str:
    # All ranks have written their address before one dies, as in the launcher's group.
    wait_for_all_ranks("the beginning")
    if collectives.rank() == victim:
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        wait_for_all_ranks("the results", limit_s=30.0)
    except RuntimeError as error:
        return str(error)
    return "no error"


@pytest.mark.slow
def test_a_dead_rank_is_named_by_all_others() -> None:
    for victim in (0, 1):
        outcomes = rank_outcomes(die_on, 3, victim)
        assert outcomes[victim].error == "died with exit code -9"
        said = {str(o.result) for rank, o in enumerate(outcomes) if rank != victim}
        assert len(said) == 1
        assert said.pop().startswith(f"rank {victim} was lost while others waited for it (the r")


def never_come() -> str:
    if collectives.rank() == 1:
        time.sleep(3.0)
        return ""
    try:
        wait_for_all_ranks("the results", limit_s=0.5)
    except RuntimeError as error:
        return str(error)
    return "no error"


@pytest.mark.slow
def test_a_rank_that_lives_and_does_not_come_is_named() -> None:
    first, _ = rank_outcomes(never_come, 2)
    assert first.result.startswith("rank 1 did not come to the results within 0.5 s")


def test_alone_nobody_is_waited_for() -> None:
    wait_for_all_ranks("the results")
