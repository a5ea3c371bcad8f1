"""run_on_rank: one rank works, the others wait outside any collective and learn how it ended."""

import ctypes
import json
import os
import re
import signal
import threading
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from dq.dist.exchange import collectives
from dq.dist.exchange.collectives import all_reduce_
from dq.dist.watch.signals import Stopped
from dq.dist.work.all_here import wait_for_all_ranks
from dq.dist.work.on_one_rank import name_of, run_on_rank
from tests.processes.ranks import rank_outcomes, run_ranks


def fail() -> None:
    raise KeyError("no such image")


def work_in_turn() -> dict[str, Any]:
    got: dict[str, Any] = {
        "first": run_on_rank(lambda: "done"),
        "second": run_on_rank(lambda: collectives.rank() + 40, rank=2),
    }
    begin = time.monotonic()
    try:
        run_on_rank(fail, rank=1)
    except (KeyError, RuntimeError) as error:
        got["failure"] = f"{type(error).__name__}: {error}"
    got["failure took"] = time.monotonic() - begin
    got["after"] = run_on_rank(lambda: "again", rank=1)
    try:
        run_on_rank(lambda: time.sleep(2.0), limit_s=0.2)
    except RuntimeError as error:
        got["limit"] = str(error)
    got["sum"] = all_reduce_(torch.ones(1)).item()
    return got


def test_one_rank_works_and_a_failure_reaches_all_with_its_message() -> None:
    ranks = run_ranks(work_in_turn, 3)
    assert [got["first"] for got in ranks] == ["done", None, None]
    assert [got["second"] for got in ranks] == [None, None, 42]
    told = "LostRankError: rank 1 failed (KeyError): 'no such image'"
    assert [got["failure"] for got in ranks] == [told, "KeyError: 'no such image'", told]
    assert max(got["failure took"] for got in ranks) < 4.0
    assert [got["after"] for got in ranks] == [None, "again", None]
    late = "rank 0 was still at work after the limit of 0.2 s"
    assert [got.get("limit") for got in ranks] == [None, late, late]
    assert [got["sum"] for got in ranks] == [3.0, 3.0, 3.0]


def work_longer_than_the_time_out() -> tuple[str | None, float, list[str]]:
    def work() -> str:
        time.sleep(5.0)
        return "evaluated"

    # Longer than the group's time-out of 3 s.
    got = run_on_rank(work, heartbeat_s=0.2)
    total = all_reduce_(torch.ones(1)).item()
    time.sleep(0.2)
    keys = [
        f"dq/meeting/1/{key}"
        for key in ("name", "beat", "end", "forgotten")
        if distributed_c10d._get_default_store().check([f"dq/meeting/1/{key}"])
    ]
    alive = [thread.name for thread in threading.enumerate() if thread.name == "dq-heartbeat"]
    return got, total, keys + alive


@pytest.mark.slow
def test_slow_work_hits_no_time_out_and_leaves_neither_keys_nor_threads() -> None:
    outcomes = rank_outcomes(work_longer_than_the_time_out, 2, group_timeout_s=3.0)
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert [outcome.result for outcome in outcomes] == [("evaluated", 2.0, []), (None, 2.0, [])]


def die_at_work() -> str:
    def die() -> None:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    begin = time.monotonic()
    try:
        run_on_rank(die, rank=1)
    except RuntimeError as error:
        return f"{time.monotonic() - begin < 15.0} {error}"
    return "no error"


def test_a_killed_worker_is_named_by_all_others_within_the_limit() -> None:
    first, killed, last = rank_outcomes(die_at_work, 3)
    assert killed.error == "died with exit code -9"
    for outcome in (first, last):
        assert outcome.result.startswith("True rank 1 was lost while the others waited")


def never_arrive() -> str:
    if collectives.rank() == 0:
        os._exit(7)
    try:
        run_on_rank(lambda: None, hung_s=0.5)
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_a_worker_that_never_begins_is_named() -> None:
    killed, waiting = rank_outcomes(never_arrive, 2)
    assert killed.error == "died with exit code 7"
    assert waiting.result.startswith("rank 0 gave no sign of life for 0.5 s while the others")


def hold_the_lock() -> str | None:
    def work() -> str:
        ctypes.PyDLL(None).sleep(4)  # Like a long json.load: no other thread runs.
        return "read"

    # Much longer than a heartbeat and than the group's time-out.
    return run_on_rank(work, heartbeat_s=0.1)


@pytest.mark.slow
def test_a_call_that_holds_the_gil_counts_as_alive() -> None:
    outcomes = rank_outcomes(hold_the_lock, 2, group_timeout_s=2.0)
    assert [(o.result, o.error) for o in outcomes] == [("read", None), (None, None)]


def leave_a_child_and_die() -> str:
    """Like a rank with loader processes that is killed: they live a while longer."""
    begin = time.monotonic()

    def die() -> None:
        if os.fork() == 0:
            time.sleep(6.0)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        run_on_rank(die, rank=1)
    except RuntimeError as error:
        return f"{time.monotonic() - begin < 15.0} {error}"
    return "no error"


@pytest.mark.slow
def test_a_child_does_not_hide_that_its_parent_is_dead() -> None:
    first, killed = rank_outcomes(leave_a_child_and_die, 2)
    assert killed.error == "died with exit code -9"
    assert first.result.startswith("True rank 1 was lost")


def fail_by_the_users_mistake() -> list[str]:
    said = []
    for error in (ValueError("no such class; name it"), Stopped("SIGTERM"), OSError("broken")):

        def work(error: BaseException = error) -> None:
            raise error

        try:
            run_on_rank(work)
        except BaseException as caught:
            said.append(f"{type(caught).__name__}: {caught}")
    return said


def test_all_ranks_end_alike() -> None:
    first, second = run_ranks(fail_by_the_users_mistake, 2)
    assert first[:2] == ["ValueError: no such class; name it", "Stopped: SIGTERM"]
    assert second[:2] == first[:2]
    assert second[2] == "LostRankError: rank 0 failed (OSError): broken"


def go_different_ways() -> str:
    try:
        if collectives.rank() == 0:
            run_on_rank(lambda: None, name="evaluation", rank=1, limit_s=2.0)
        else:
            time.sleep(0.5)
            run_on_rank(lambda: None, name="a checkpoint", rank=0, limit_s=2.0)
    except RuntimeError as error:
        return str(error)
    return "no error"


def test_ranks_at_different_meetings_raise() -> None:
    _, second = rank_outcomes(go_different_ways, 2, grace_s=5.0)
    assert "'a checkpoint on rank 0' while another rank is at 'evaluation on rank 1'" in str(
        second.result
    )


def lose_the_store(port: int) -> str:
    """Use a store in rank 0, as without torchrun; rank 0 dies during its work."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo")
    wait_for_all_ranks("the beginning")

    def die() -> None:
        time.sleep(1.0)  # Until the other rank waits.
        os._exit(9)

    begin = time.monotonic()
    try:
        run_on_rank(die)
    except RuntimeError as error:
        return json.dumps([time.monotonic() - begin < 10.0, str(error)])
    return "no error"


def test_a_worker_that_dies_with_the_store_is_named_at_once(free_port: int) -> None:
    killed, waiting = rank_outcomes(lose_the_store, 2, free_port, group=False)
    assert killed.error == "died with exit code 9"
    quick, message = json.loads(waiting.result)
    assert quick
    assert re.match(
        "rank 0 was (lost while|to work, but the store on which ranks meet is g)", message
    )


def test_alone_the_work_is_called_and_its_error_is_its_own() -> None:
    assert run_on_rank(lambda: 5) == 5
    with pytest.raises(KeyError):
        run_on_rank(fail)


def test_wrong_settings_are_refused_even_alone() -> None:
    with pytest.raises(ValueError, match=r"there is no rank 1, only 1 rank$"):
        run_on_rank(fail, rank=1)


def test_work_is_named_by_its_place() -> None:
    def work() -> None: ...

    class Work:
        def __call__(self) -> None: ...

    line = work.__code__.co_firstlineno
    assert name_of(work) == f"{__name__}.test_work_is_named_by_its_place.<locals>.work:{line}"
    assert name_of(Work()) == f"{__name__}.Work"
