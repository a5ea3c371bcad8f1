"""Losses of all ranks in one line of the log: by name, independent of the order on a rank."""

from __future__ import annotations

import pytest
import torch

from dq.detector.step.losses import LossLog, LossValues
from dq.dist.exchange import collectives
from dq.dist.exchange.collectives import collective_count
from tests.processes.ranks import run_ranks


def losses(**values: float) -> LossValues:
    return LossValues({name: torch.tensor(value) for name, value in values.items()})


def logged() -> tuple[dict[str, float], int, str]:
    """Average losses in another order, with a hook between two loggers, then other losses."""
    rank = collectives.rank()
    buffer = LossLog()
    step = losses(a=1.0, b=10.0) if rank == 0 else losses(b=30.0, a=3.0)
    buffer.update(step)
    before = collective_count()
    buffer.average(1)
    if rank == 0:
        buffer.update({"of a hook": 5.0})
    buffer.average(1)
    taken = collective_count() - before
    found = dict(buffer.output)
    buffer.clear_output()
    buffer.update(losses(a=1.0, more=2.0) if rank == 1 else losses(a=1.0))
    try:
        buffer.average(1)
    except ValueError as error:
        return found, taken, str(error)
    return found, taken, "no error"


def test_ranks_average_by_name_and_refuse_others() -> None:
    (first, taken, said), (second, others, same) = run_ranks(logged, 2)
    assert first == {"a": 2.0, "b": 20.0, "of a hook": 5.0}
    assert second == {"a": 2.0, "b": 20.0}
    assert (taken, others) == (2, 2), "one to agree on names, one for the means"
    assert said == same
    assert said.startswith("losses differ between ranks: more on rank 1 of 2 alone; let the model")


def test_one_rank_averages_the_last_values() -> None:
    buffer = LossLog()
    for value in (1.0, 2.0, 4.0):
        buffer.update(losses(a=value))
    buffer.average(2)
    assert buffer.output == {"a": 3.0}
    buffer.clear_output()
    buffer.update(losses(a=float("nan")))
    with pytest.raises(RuntimeError, match="a is not finite"):
        buffer.average(1)
