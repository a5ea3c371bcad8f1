"""What one rank asks for happens on all ranks after the same step."""

from __future__ import annotations

import time

import torch

from dq.dist import collectives
from dq.dist.agreement import Agreement
from tests.ranks import run_ranks

STEPS = 12


def ask_and_step(asking: list[tuple[int, int, str]], check_every: int) -> dict[str, list[int]]:
    """Do steps with an exchange each; return the steps after which each request was due."""
    agreement = Agreement(check_every=check_every)
    due: dict[str, list[int]] = {}
    for step in range(1, STEPS + 1):
        for rank, at, what in asking:
            if (rank, at) == (collectives.rank(), step):
                agreement.ask(what, f"of rank {rank}")
        # Ranks come to the store at different times, whatever the exchange did.
        time.sleep(0.01 * ((collectives.rank() + step) % 3))
        collectives.all_reduce_(torch.ones(1))
        for what in agreement.due(step):
            due.setdefault(what, []).append(step)
    return due


def test_a_request_of_one_rank_is_due_on_all_after_the_same_step() -> None:
    got = run_ranks(ask_and_step, 3, [(1, 3, "stop")], 1)
    assert got == [{"stop": [4]}] * 3


def test_requests_of_several_ranks_are_all_met_once() -> None:
    got = run_ranks(ask_and_step, 3, [(0, 2, "save"), (2, 2, "save"), (1, 6, "stop")], 1)
    assert got == [{"save": [3], "stop": [7]}] * 3


def test_a_rarer_look_delays_alike() -> None:
    got = run_ranks(ask_and_step, 2, [(1, 2, "stop")], 4)
    assert got == [{"stop": [8]}] * 2


def test_alone_a_request_is_due_at_once_and_keeps_its_first_reason() -> None:
    agreement = Agreement()
    assert agreement.due(1) == {}
    agreement.ask("stop", "first")
    agreement.ask("stop", "second")
    assert agreement.due(2) == {"stop": "first"}
    assert agreement.due(3) == {}
