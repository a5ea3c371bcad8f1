"""Which rank prints an error, on a store in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from dq.dist.exchange import collectives
from dq.dist.group import claim
from dq.dist.group.claim import claim_report, wait_for_reports


class Job:
    """Rank `rank` of `size`, and what it knows of the main rank."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rank, self.size = 1, 3
        self.store: Any = dist.HashStore()
        self.is_known_gone = False
        self.reported_code: int | None = None
        self.told: list[int] = []
        presence = SimpleNamespace(of=lambda rank: {0: self}[rank], tell_reported=self.told.append)
        monkeypatch.setattr(claim, "presence", lambda: presence)
        monkeypatch.setattr(claim, "open_store", self.open)
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(collectives, "world_size", lambda: self.size)
        monkeypatch.setattr(collectives, "is_main_rank", lambda: self.rank == 0)
        monkeypatch.setattr(claim, "LINGER_S", 0.1)

    def open(self, name: str) -> Any:
        assert name == "claims"
        if self.store is None:
            raise RuntimeError("the store is gone")
        return self.store


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(monkeypatch)


def test_without_a_group_every_error_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "open_store", None)
    assert claim_report(3) is None
    wait_for_reports(3)


def test_the_first_rank_prints_and_the_others_get_its_code(job: Job) -> None:
    assert claim_report(3) is None
    assert claim_report(4) == 3
    assert claim_report(5) == 3


@pytest.mark.parametrize(("rank", "code", "wanted"), [(1, 7, 7), (1, None, None), (0, 7, None)])
def test_without_a_store_the_last_word_of_the_main_rank_counts(
    job: Job, rank: int, code: int | None, wanted: int | None
) -> None:
    job.store, job.rank, job.reported_code = None, rank, code
    assert claim_report(3) == wanted


@pytest.mark.parametrize("gone", [True, False])
def test_a_silent_store_is_waited_for_shortly_if_the_main_rank_is_gone(
    job: Job, gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    class Silent:
        def add(self, key: str, value: int) -> int:
            asked.wait(60.0)
            raise RuntimeError

    job.store, job.is_known_gone, job.reported_code = Silent(), gone, 9
    passed = [0.0]

    def pauses(longest_s: float) -> Iterator[None]:
        while True:
            yield
            passed[0] += longest_s

    monkeypatch.setattr(claim, "pauses", pauses)
    monkeypatch.setattr(claim, "time", SimpleNamespace(monotonic=lambda: 100.0 + passed[0]))
    assert claim_report(3) == 9
    asked.set()
    assert passed[0] == pytest.approx(3.2 if gone else 20.2)
    assert claim._is_main_rank_gone() is gone
    job.rank = 0
    assert not claim._is_main_rank_gone()


def test_the_main_rank_waits_for_the_others_and_tells_those_that_are_later(job: Job) -> None:
    job.rank = 0
    wait_for_reports(6)
    assert job.told == [6]
    assert job.store.add("ending", 0) == 1
    job.store.add("ending", 1)
    wait_for_reports(6)
    assert job.told == [6, 6]
    assert job.store.add("ending", 0) == 3


def test_other_ranks_do_not_wait_and_tell_nobody(job: Job) -> None:
    wait_for_reports(6)
    assert job.told == []
    assert job.store.add("ending", 0) == 1
    job.store = None
    wait_for_reports(6)
    job.size = 1
    job.rank = 0
    wait_for_reports(6)
    assert job.told == []
