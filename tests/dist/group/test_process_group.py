"""process_group: its start, its orderly end, and its end after an error."""

import os
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dq.dist.exchange.collectives import all_reduce_
from dq.dist.group.process_group import process_group
from dq.dist.rendezvous.environment import Environment
from tests.processes.ranks import rank_outcomes

CPU = torch.device("cpu")


def environment() -> Environment:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return Environment(
        rank=rank, world_size=world_size, local_rank=rank, local_world_size=world_size
    )


def begin_and_end_twice(port: int) -> tuple[list[float], bool, float]:
    sums = []
    here = environment()
    begin = time.monotonic()
    for number in range(2):
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port + number))
        with process_group(here, device=CPU, timeout_s=20.0):
            sums.append(all_reduce_(torch.ones(1)).item())
            time.sleep(0.3 * here.rank)  # Rank 0 holds the store and must wait for the others.
    return sums, dist.is_initialized(), time.monotonic() - begin


def test_a_group_begins_ends_and_begins_again(free_port: int) -> None:
    for outcome in rank_outcomes(begin_and_end_twice, 3, free_port, group=False):
        assert outcome.error is None
        sums, left_over, took_s = outcome.result
        assert sums == [3.0, 3.0]
        assert not left_over
        assert took_s < 10.0


def raise_on_rank_1(port: int) -> dict[str, Any]:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    here = environment()
    begin = time.monotonic()
    got: dict[str, Any] = {}
    try:
        with process_group(here, device=CPU, timeout_s=40.0):
            all_reduce_(torch.ones(1))
            if here.rank == 1:
                # A collective in progress that no other rank joins.
                pending = dist.all_reduce(torch.ones(1), async_op=True)
                raise LookupError("lost the data")
            if here.rank == 2:
                dist.recv(torch.ones(1), src=1)
    except LookupError:
        del pending
        left_in_time = time.monotonic() - begin < 10.0 and not dist.is_initialized()
        os._exit(17 if left_in_time else 18)
    except RuntimeError as error:
        got["error"] = str(error)
    return got | {"took": time.monotonic() - begin}


@pytest.mark.slow
def test_when_one_rank_raises_no_rank_waits_for_another(free_port: int) -> None:
    ended, raised, receiving = rank_outcomes(raise_on_rank_1, 3, free_port, group=False)
    assert raised.error == "died with exit code 17"
    assert "Connection closed" in receiving.result["error"]
    assert "error" not in ended.result
    assert max(ended.result["took"], receiving.result["took"]) < 20.0


def find_nobody(port: int) -> str:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with process_group(environment(), device=CPU, timeout_s=20.0, arrival_s=1.0):
        return "met"


def test_a_failed_rendezvous_names_the_address_and_what_to_check(free_port: int) -> None:
    (alone,) = rank_outcomes(find_nobody_as_rank_1, 1, free_port, group=False)
    assert alone.error is not None
    last = alone.error.strip().splitlines()[-1]
    assert "NoMeetingError: rank 1 of 2 found no process group" in last
    assert f"'127.0.0.1:{free_port}'" in last
    assert "check that both are the same" in last


def find_nobody_as_rank_1(port: int) -> str:
    os.environ.update(RANK="1", WORLD_SIZE="2")
    return find_nobody(port)


def find_two_of_three(port: int) -> str:
    os.environ.update(WORLD_SIZE="3")
    return find_nobody(port)


def test_ranks_that_arrived_name_the_one_that_did_not(free_port: int) -> None:
    first, second = rank_outcomes(find_two_of_three, 2, free_port, group=False)
    assert "rank 2 of 3 did not arrive within 1 s" in str(first.error).splitlines()[-1]
    assert second.error is not None


def test_without_an_address_the_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    pair = Environment(world_size=2, local_world_size=2)
    with (
        pytest.raises(ValueError, match="MASTER_ADDR is not set"),
        process_group(pair, device=CPU),
    ):
        pass


def test_alone_there_is_no_group() -> None:
    with process_group(Environment(), device=torch.device("cuda")):
        assert not dist.is_initialized()


@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_a_device_without_number_or_backend_is_refused(device: str) -> None:
    pair = Environment(world_size=2, local_world_size=2)
    with (
        pytest.raises(ValueError, match="is cpu or cuda:N"),
        process_group(pair, device=torch.device(device)),
    ):
        pass
