"""Who prints a failure at the start, and how long the others wait, on a store in this process."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch.distributed as dist

from dq.dist.errors.notes import notes_on
from dq.dist.group import early_failure
from dq.dist.group.early_failure import (
    OtherRankMistakeError,
    OtherRankStartError,
    StartFailure,
    claim,
    raise_reported_failure,
    report_failure,
)
from dq.dist.rendezvous.environment import Environment

MAIN = Environment(rank=0, world_size=3, local_world_size=3)
OTHER = Environment(rank=2, world_size=3, local_rank=2, local_world_size=3)
ALONE = Environment()


def failure(rank: int, *, mistake: bool = True) -> StartFailure:
    return StartFailure(rank=rank, mistake=mistake, line=f"line of {rank}")


class Job:
    """A store, the time that passes in pauses, and what is printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = dist.HashStore()
        self.slept = 0.0
        self.said = 0
        self.opened: list[float] = []
        self.unreachable = 0
        self.agents = False
        monkeypatch.setattr(time, "sleep", self.sleep)
        monkeypatch.setattr(time, "monotonic", lambda: 100.0 + self.slept)
        monkeypatch.setattr(early_failure, "open_meeting_place", self.open)
        monkeypatch.setattr(early_failure, "is_agents_store", lambda: self.agents)

    def sleep(self, seconds: float) -> None:
        assert seconds <= 0.2
        self.slept += seconds

    def open(self, environment: Environment, limit_s: float) -> Any:
        self.opened.append(limit_s)
        if self.unreachable:
            self.unreachable -= 1
            raise OSError("nobody listens")
        return self.store

    def say(self) -> None:
        self.said += 1


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(monkeypatch)


def test_a_single_process_prints_its_failure(job: Job) -> None:
    report_failure(ALONE, failure(0), job.say)
    assert job.said == 1
    assert job.opened == []


@pytest.mark.parametrize("heard", [0, 1, 2])
def test_the_main_rank_prints_its_failure_and_waits_for_the_others(job: Job, heard: int) -> None:
    job.store.add("heard", heard)
    report_failure(MAIN, failure(0), job.say)
    assert job.said == 1
    assert job.opened == [10.0]
    assert job.store.check(["told"])
    assert job.store.add("failures", 0) == 1
    assert (job.slept == 0) == (heard == 2)
    assert heard == 2 or 10.0 < job.slept < 10.3


@pytest.mark.parametrize("claimed", [False, True])
def test_with_torchruns_store_the_first_to_claim_prints_and_nobody_waits(
    job: Job, claimed: bool
) -> None:
    job.agents = True
    if claimed:
        assert claim(job.store)
    report_failure(MAIN, failure(0), job.say)
    assert job.said == (0 if claimed else 1)
    assert job.store.check(["told"])
    assert job.slept == 0


@pytest.mark.parametrize("agents", [False, True])
def test_a_main_rank_without_a_store_prints_once(job: Job, agents: bool) -> None:
    job.agents, job.unreachable = agents, 9
    report_failure(MAIN, failure(0), job.say)
    assert job.said == 1


def test_another_rank_waits_until_somebody_has_printed(job: Job) -> None:
    job.store.set("told", "")
    report_failure(OTHER, failure(2), job.say)
    assert job.said == 0
    assert job.opened == [10.0]
    assert job.store.add("heard", 0) == 1
    assert job.store.add("failures", 0) == 1
    assert job.slept == 0


def test_another_rank_prints_if_nobody_does_for_a_minute(job: Job) -> None:
    report_failure(OTHER, failure(2), job.say)
    assert job.said == 1
    assert 60.0 < job.slept < 60.3
    assert job.store.check(["told"])
    assert job.opened == [10.0]
    assert job.store.add("heard", 0) == 0


def test_another_rank_does_not_print_what_somebody_else_prints(job: Job) -> None:
    assert claim(job.store)
    report_failure(OTHER, failure(2), job.say)
    assert job.said == 0
    assert 60.0 < job.slept < 60.3


@pytest.mark.parametrize("unreachable", [1, 2])
def test_a_rank_that_reaches_nobody_prints_once_and_tries_again(job: Job, unreachable: int) -> None:
    job.unreachable = unreachable
    report_failure(OTHER, failure(2), job.say)
    assert job.said == 1
    assert job.opened == [10.0, 15.0]
    # A main rank that comes late must not wait for this one.
    assert job.store.add("failures", 0) == (1 if unreachable == 1 else 0)
    assert job.slept == 0


def reported(job: Job, environment: Environment, *failures: StartFailure) -> Exception:
    for each in failures:
        early_failure._write_failure(job.store, each)
    with pytest.raises((ValueError, RuntimeError)) as caught:
        raise_reported_failure(job.store, environment)
    return caught.value


def test_without_a_failure_nothing_is_raised(job: Job) -> None:
    raise_reported_failure(job.store, MAIN)
    raise_reported_failure(job.store, OTHER)


@pytest.mark.parametrize("mistake", [True, False])
def test_the_failure_of_the_lowest_rank_is_raised(job: Job, mistake: bool) -> None:
    many = failure(2), failure(1, mistake=mistake), failure(3)
    error = reported(job, OTHER, *many)
    assert type(error) is (OtherRankMistakeError if mistake else OtherRankStartError)
    assert str(error) == "rank 1 of 3 (and 2 more ranks) could not begin: line of 1"
    assert notes_on(error).reported
    assert job.store.add("heard", 0) == 1
    assert not job.store.check(["told"])
    assert job.slept == 0


@pytest.mark.parametrize("agents", [False, True])
@pytest.mark.parametrize("claimed", [False, True])
def test_the_main_rank_prints_the_failure_of_another_once(
    job: Job, agents: bool, claimed: bool
) -> None:
    job.agents = agents
    if claimed:
        claim(job.store)
    error = reported(job, MAIN, failure(1))
    assert str(error) == "rank 1 of 3 could not begin: line of 1"
    assert notes_on(error).reported is claimed
    assert job.store.check(["told"])
    # It holds the store that the others read, unless torchrun does.
    assert job.slept == 0 if agents else 5.0 < job.slept < 5.3
