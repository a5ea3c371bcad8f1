"""Collectives: the result on every rank, and the number of collectives."""

import time
from typing import Any

import pytest
import torch

from dq.dist.exchange import collectives
from dq.dist.exchange.collectives import (
    all_gather,
    all_gather_objects,
    all_reduce_,
    barrier,
    broadcast_,
    broadcast_coalesced_,
    broadcast_object,
    collective_count,
    gather_objects,
    is_main_rank,
)
from tests.processes.ranks import rank_outcomes, run_ranks


def reduce_everything() -> dict[str, Any]:
    rank = collectives.rank()
    strided = torch.full((3, 2), float(rank + 1)).t()
    parameter = torch.nn.Parameter(torch.full((2,), float(rank)))
    return {
        "main": is_main_rank(),
        "place": (rank, collectives.world_size()),
        "sum": all_reduce_(torch.tensor([1.0, rank])),
        "mean": all_reduce_(torch.tensor([1.0, rank]), "mean"),
        "min": all_reduce_(torch.tensor([rank, -rank]), "min"),
        "max": all_reduce_(torch.tensor([rank, -rank]), "max"),
        "in place": all_reduce_(strided) is strided and bool((strided == 3).all()),
        "parameter": all_reduce_(parameter).detach(),
        "half": all_reduce_(torch.full((2,), rank + 1, dtype=torch.bfloat16)),
        "counted": collective_count(),
    }


def test_reductions_give_every_rank_the_same_and_count_themselves() -> None:
    for rank, got in enumerate(run_ranks(reduce_everything, 2)):
        assert got["main"] == (rank == 0)
        assert got["place"] == (rank, 2)
        assert got["sum"].tolist() == [2.0, 1.0]
        assert got["mean"].tolist() == [1.0, 0.5]
        assert got["min"].tolist() == [0, -1]
        assert got["max"].tolist() == [1, 0]
        assert got["in place"]
        assert got["parameter"].tolist() == [1.0, 1.0]
        assert got["half"].tolist() == [3.0, 3.0]
        assert got["counted"] == 7


def mixed_tensors(rank: int) -> list[torch.Tensor]:
    return [
        torch.tensor([True, rank == 0, False]),
        torch.full((2, 3), 1.5 + rank, dtype=torch.float64).t(),
        torch.tensor(7 + rank),
        torch.full((5,), rank, dtype=torch.bfloat16),
        torch.full((3,), rank, dtype=torch.uint8),
        torch.empty(0, 4),
        torch.full((1,), 1j * rank),
    ]


def exchange_everything() -> dict[str, Any]:
    rank = collectives.rank()
    tensors = mixed_tensors(rank)
    before = collective_count()
    broadcast_coalesced_(tensors, source=2)
    taken = collective_count() - before
    barrier()
    barrier(limit_s=20.0)
    return {
        "taken": taken,
        "equal": all(map(torch.equal, tensors, mixed_tensors(2))),
        "broadcast": broadcast_(torch.tensor(rank), source=1),
        "gathered": all_gather(torch.full((2,), rank)),
        "scalars": all_gather(torch.tensor(float(rank), requires_grad=True)),
        "objects": gather_objects({"rank": rank}, destination=1),
        "all objects": all_gather_objects("x" * rank),
        "object": broadcast_object({"from": rank}, source=2),
    }


def test_one_broadcast_carries_every_dtype_and_gathers_keep_rank_order() -> None:
    for rank, got in enumerate(run_ranks(exchange_everything, 3)):
        assert got["taken"] == 1
        assert got["equal"]
        assert got["broadcast"] == 1
        assert got["gathered"].tolist() == [[0, 0], [1, 1], [2, 2]]
        assert got["scalars"].tolist() == [0.0, 1.0, 2.0]
        assert got["objects"] == ([{"rank": r} for r in range(3)] if rank == 1 else None)
        assert got["all objects"] == ["", "x", "xx"]
        assert got["object"] == {"from": 2}


def come_late_to_the_barrier() -> str:
    if collectives.rank() == 1:
        time.sleep(3)
        return "late"
    try:
        barrier(limit_s=0.5)
    except RuntimeError as error:
        return str(error)
    return "met"


@pytest.mark.slow
def test_a_barrier_with_a_limit_names_the_rank_that_did_not_come() -> None:
    waited, late = rank_outcomes(come_late_to_the_barrier, 2)
    assert "rank 1 did not reach the barrier within 0.5 s of rank 0" in waited.result
    assert late.result == "late"


def test_in_a_single_process_collectives_are_the_identity_and_none_is_issued() -> None:
    tensor = torch.arange(4.0)
    before = collective_count()
    assert all_reduce_(tensor, "mean") is tensor
    assert broadcast_(tensor) is tensor
    broadcast_coalesced_([tensor])
    assert tensor.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert all_gather(tensor).tolist() == [[0.0, 1.0, 2.0, 3.0]]
    assert gather_objects("a") == all_gather_objects("a") == ["a"]
    assert broadcast_object("a") == "a"
    barrier()
    barrier(limit_s=0.0)
    assert (collectives.rank(), collectives.world_size(), is_main_rank()) == (0, 1, True)
    assert collective_count() == before


def test_a_wrong_reduction_is_refused_even_alone() -> None:
    with pytest.raises(ValueError, match="one of sum, mean, min, max, but op is 'avg'"):
        all_reduce_(torch.zeros(1), "avg")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"floating dtype, but got torch\.int64"):
        all_reduce_(torch.zeros(1, dtype=torch.int64), "mean")
