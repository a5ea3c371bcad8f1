"""One rank works or reports for all; and which tensors differ between ranks."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from dq.dist.equality.own_tensors import own_tensors
from dq.dist.exchange import collectives
from dq.dist.group.claim import ANSWER_S, claim_report, wait_for_reports
from dq.dist.group.presence import presence, watchable
from dq.dist.work.on_main_rank import on_main_rank
from tests.processes.ranks import rank_outcomes, run_ranks


def work(kind: str) -> tuple[int, str]:
    """Return a pid, or fail in one of several ways."""
    if kind == "value":
        raise ValueError("the file is broken; make a new one")
    if kind == "os":
        raise OSError("the disk is gone")
    return os.getpid(), kind


def call(kind: str) -> tuple[str, object]:
    try:
        return "result", on_main_rank(lambda: work(kind))
    except Exception as error:
        return type(error).__name__, str(error)


def test_all_ranks_get_what_the_main_rank_did() -> None:
    first, second = run_ranks(call, 2, "fine")
    assert first == second
    assert first[0] == "result"


def call_late(late: int) -> str:
    if collectives.rank() == late:
        time.sleep(4.0)
    return str(on_main_rank(lambda: "read")) + str(on_main_rank(lambda: "again"))


@pytest.mark.slow
@pytest.mark.parametrize("late", [0, 1])
def test_a_late_rank_is_waited_for_longer_than_a_collective(late: int) -> None:
    ended = rank_outcomes(call_late, 2, late, group_timeout_s=2.0)
    assert [(one.result, one.error) for one in ended] == [("readagain", None)] * 2


def test_all_ranks_raise_what_the_main_rank_raised() -> None:
    wanted = ("ValueError", "the file is broken; make a new one")
    assert run_ranks(call, 2, "value") == [wanted, wanted]
    first, second = run_ranks(call, 2, "os")
    assert first == ("OSError", "the disk is gone")
    assert second == ("LostRankError", "rank 0 failed (OSError): the disk is gone")


def test_alone_the_error_is_the_works_own() -> None:
    with pytest.raises(OSError, match="the disk is gone"):
        on_main_rank(lambda: work("os"))


def claim() -> tuple[int | None, int | None]:
    code = 10 + collectives.rank()
    return claim_report(code), claim_report(code)


def test_exactly_one_rank_reports_and_all_end_with_its_code() -> None:
    got = run_ranks(claim, 3)
    (reporter,) = [rank for rank, (first, _) in enumerate(got) if first is None]
    others = {first for rank, (first, _) in enumerate(got) if rank != reporter}
    assert others == {10 + reporter}
    assert {again for _, again in got} == {10 + reporter}
    assert claim_report(1) is None, "alone"


def claim_after_the_main_rank_ended(has_reported: bool) -> tuple[int | None, float]:
    """The main rank, which holds the store, is gone before the other asks."""
    with watchable():
        return _claim_late(has_reported)


def _claim_late(has_reported: bool) -> tuple[int | None, float]:
    collectives.barrier()
    if collectives.is_main_rank():
        if has_reported:
            assert claim_report(2) is None
            wait_for_reports(2)
        os.kill(os.getpid(), signal.SIGKILL)
    while not presence().of(0).is_known_gone:
        time.sleep(0.05)
    began = time.monotonic()
    return claim_report(1), time.monotonic() - began


@pytest.mark.parametrize("has_reported", [False, True])
def test_the_last_word_of_the_main_rank_decides_when_its_store_is_gone(has_reported: bool) -> None:
    _, outcome = rank_outcomes(claim_after_the_main_rank_ended, 2, has_reported, limit_s=60)
    assert outcome.error is None
    reported, seconds = outcome.result
    assert reported == (2 if has_reported else None)
    assert seconds < ANSWER_S / 2


def own() -> list[str]:
    rank = float(collectives.rank())
    tensors = {
        "equal": torch.arange(3.0),
        "mean": torch.tensor([1.0, rank]),
        "nan": torch.tensor(float("nan")),
        "zero": torch.tensor(0.0 if rank == 0 else -0.0),
    }
    return sorted(own_tensors(tensors))


def test_own_tensors_differ_in_their_bytes() -> None:
    assert run_ranks(own, 2) == [[], ["mean", "zero"]]
    assert own() == []
