"""The helper that runs ranks: it reports results, never hangs, and leaves no process."""

import multiprocessing
import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.processes.ranks import RanksError, rank_outcomes, run_ranks


class OwnResult:
    def __init__(self, rank: int, extra: str) -> None:
        self.rank, self.extra = rank, extra


def answer(extra: str) -> OwnResult:
    return OwnResult(dist.get_rank(), extra)


def test_results_come_in_rank_order_even_of_a_class_of_the_test_file() -> None:
    results = run_ranks(answer, 2, "more")
    assert [(type(it), it.rank, it.extra) for it in results] == [
        (OwnResult, 0, "more"),
        (OwnResult, 1, "more"),
    ]


def misbehave() -> None:
    if dist.get_rank() == 0:
        raise ValueError("of its own")
    if dist.get_rank() == 1:
        os._exit(3)
    dist.all_reduce(torch.ones(1))  # Nobody joins.
    time.sleep(60)


def test_an_error_a_death_and_a_stuck_rank_are_named_and_no_process_stays() -> None:
    # Another test of this process may have left the pool of a library.
    others = multiprocessing.active_children()
    begin = time.monotonic()
    with pytest.raises(RanksError) as caught:
        run_ranks(misbehave, 3)
    assert time.monotonic() - begin < 15
    text = str(caught.value)
    assert "rank 0: Traceback" in text
    assert "ValueError: of its own" in text
    assert "rank 1: died with exit code 3" in text
    assert "rank 2: " in text
    assert set(multiprocessing.active_children()) <= set(others)


def sleep_long() -> None:
    time.sleep(60)


def test_ranks_past_the_limit_are_killed_and_named() -> None:
    outcomes = rank_outcomes(sleep_long, 1, limit_s=1.0)
    assert [outcome.error for outcome in outcomes] == ["was stuck, killed after 1 s"]


def test_a_nested_function_is_refused() -> None:
    with pytest.raises(ValueError, match="must be a module-level function"):
        run_ranks(lambda: None, 1)
