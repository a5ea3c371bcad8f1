"""Ranks wait for each other outside any collective, but not for dead ranks."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dq.dist.exchange import collectives
from dq.dist.work import all_here
from dq.dist.work.all_here import wait_for_all_ranks
from tests.processes.ranks import rank_outcomes


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


class Others:
    """What rank `own` of three knows of the others: who is gone, and who cannot be watched."""

    def __init__(self, gone: tuple[int, ...] = (), unseen: tuple[int, ...] = ()) -> None:
        self.gone, self.unseen = gone, unseen
        self.asked: set[int] = set()

    def of(self, rank: int) -> Any:
        self.asked.add(rank)
        return SimpleNamespace(is_gone=lambda: rank in self.gone, is_open=rank not in self.unseen)


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let no time pass but that of the pauses, which is returned."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "monotonic", lambda: 100.0 + sum(slept))
    monkeypatch.setattr(collectives, "world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    return slept


def be(rank: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(collectives, "rank", lambda: rank)
    return torch.distributed.HashStore()


def arrived(store: Any, *ranks: int) -> Any:
    for rank in ranks:
        store.set(f"here/{rank}", "")
        store.add("count", 1)
    return store


def test_the_last_one_to_leave_deletes_the_keys(
    waited: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = arrived(be(0, monkeypatch), 0, 1, 2)
    store.set("name", "")
    for number in range(3):
        assert store.check(["here/1", "count", "name"]) or not number
        all_here._wait(store, Others(), "it", 9.0)
    assert waited == []
    assert not any(store.check([key]) for key in ("here/0", "here/1", "here/2", "count", "name"))


def test_the_main_rank_watches_all_and_the_others_watch_it(
    waited: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, watched in ((0, {1, 2}), (1, {0}), (2, {0})):
        others = Others()
        store = arrived(be(rank, monkeypatch), rank)
        waited.clear()
        with pytest.raises(RuntimeError, match=r"^rank .* did not come to it within 9 s") as late:
            all_here._wait(store, others, "it", 9.0)
        missing = [str(other) for other in range(3) if other != rank]
        assert f"rank {', '.join(missing)} did" in str(late.value)
        assert others.asked == watched
        assert 9.0 < sum(waited) < 9.6
        assert max(waited) == 0.5


def test_who_finds_a_dead_rank_tells_the_others(
    waited: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = arrived(be(0, monkeypatch), 0, 1)
    with pytest.raises(RuntimeError, match=r"rank 2 was lost while others waited for it \(it\)"):
        all_here._wait(store, Others(gone=(2,)), "it", 9.0)
    be(1, monkeypatch)
    with pytest.raises(RuntimeError, match="rank 2 was lost"):
        all_here._wait(store, Others(), "it", 9.0)
    assert waited == []


@pytest.mark.parametrize(("unseen", "ends"), [((), False), ((1,), True), ((1, 2), True)])
def test_ranks_that_cannot_be_watched_are_left_to_the_collective_after_a_while(
    unseen: tuple[int, ...], ends: bool, waited: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = arrived(be(0, monkeypatch), 0)
    if ends:
        all_here._wait(store, Others(unseen=unseen), "it", 2000.0)
        assert 1800 < sum(waited) < 1801
    else:
        with pytest.raises(RuntimeError, match="within 2000 s"):
            all_here._wait(store, Others(), "it", 2000.0)
