"""The slowest rank of each phase is found by times that do not include waiting for others."""

from __future__ import annotations

import time

import pytest
import torch

from dq.dist.exchange import collectives
from dq.dist.watch.straggler import PhaseClock, Slow, slow_rank_message
from tests.processes.ranks import run_ranks


def work_unevenly() -> tuple[list[Slow], list[Slow]]:
    clock = PhaseClock()
    rank = collectives.rank()
    for _ in range(3):
        with clock.phase("data"):
            time.sleep(0.3 if rank == 2 else 0.01)
        with clock.work("computing", torch.device("cpu")):
            if rank == 1:
                began = time.process_time()
                while time.process_time() - began < 0.3:
                    pass
            collectives.barrier()
    return clock.report(), clock.report()


@pytest.mark.slow
def test_each_phase_names_its_slowest_rank_alike_on_all_ranks() -> None:
    got = run_ranks(work_unevenly, 3)
    assert got[0] == got[1] == got[2]
    computing, data = got[0][0]
    assert (computing.phase, computing.rank) == ("computing", 1)
    assert (data.phase, data.rank) == ("data", 2)
    assert data.seconds >= 0.9 > data.others
    assert got[0][1] == [], "a report begins the counting anew"


def test_no_report_in_a_single_process_or_on_a_gpu() -> None:
    clock = PhaseClock()
    with clock.phase("data"), clock.work("computing", torch.device("cuda")):
        pass
    assert set(clock.seconds) == {"data"}
    assert clock.report() == []


@pytest.mark.parametrize(
    ("seconds", "others", "said"),
    [(3.0, 1.0, True), (1.4, 1.0, False), (0.4, 0.1, False), (2.0, 0.0, True)],
)
def test_small_differences_are_not_reported(seconds: float, others: float, said: bool) -> None:
    slow = Slow(phase="data", rank=3, seconds=seconds, others=others)
    sentence = slow_rank_message(slow, above=1.5)
    assert (sentence is not None) is said
    if sentence is not None:
        assert "rank 3 is slow at data" in sentence
