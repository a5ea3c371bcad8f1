"""The training state in a checkpoint: everything of every rank, put back where it was."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dq.detector.step.losses import LossLog
from dq.detector.training.resume_state import (
    compare_weights,
    load_training_state,
    training_state,
)
from dq.dist.exchange import collectives
from dq.dist.files.checkpoint import load_checkpoint, save_checkpoint
from dq.quant.graph.prepare import prepare
from dq.quant.recipes.recipe import Recipe
from tests.processes.ranks import run_ranks

META = {"epoch": 1, "iter": 5}


class Average:
    """A companion with a nested state, as the weight average has."""

    def __init__(self) -> None:
        self.weights = {"a": torch.zeros(2)}
        self.begun = 0

    def begin_(self) -> None:
        self.begun += 1

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "steps": 4}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights = state["weights"]


def runner(seed: int, *, quantized: bool = True) -> Any:
    """Return what `training_state` reads of a runner."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.randn(4, 3, 5, 5)).sum().backward()
    optimizer.step()
    graph = prepare(net.eval(), Recipe()) if quantized else None
    for quantizer in graph.activations().values() if graph else ():
        quantizer.observer.range_min.fill_(-1.0 - seed)
        quantizer.observer.range_max.fill_(2.0 + seed)
    average = Average()
    return SimpleNamespace(
        model=net, graph=graph, recipe=Recipe() if quantized else None, optimizer=optimizer,
        companions={"average": average}, average=average, log_buffer=LossLog(), attributes={},
        pending=None,
    )  # fmt: skip


def equal(one: Any, other: Any) -> bool:
    states = zip(one.model.state_dict().items(), other.model.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in states)


@pytest.mark.parametrize("quantized", [True, False])
def test_a_training_continues_with_everything_it_had(tmp_path: Any, quantized: bool) -> None:
    old = runner(1, quantized=quantized)
    old.average.weights = {"a": torch.tensor([3.0, 4.0])}
    old.model[0].note = "set in training"
    content = training_state(old, META, {"iteration": 5})
    drawn = torch.rand(3)  # The random numbers after the checkpoint.
    save_checkpoint(tmp_path / "it.pth", content)
    new = runner(2, quantized=quantized)
    assert not equal(old, new)
    found = load_training_state(new, load_checkpoint(tmp_path / "it.pth"), "it.pth")
    assert found == {"iteration": 5}
    assert equal(old, new)
    assert torch.equal(torch.rand(3), drawn)
    assert new.average.weights["a"].tolist() == [3.0, 4.0]
    assert new.average.begun == 0
    assert new.pending == {}
    assert new.model[0].note == "set in training"
    buffers = [o.optimizer.state_dict()["state"][0]["momentum_buffer"] for o in (old, new)]
    assert torch.equal(*buffers)


def test_what_plain_mmdet_wrote_continues_without_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    old = runner(1, quantized=False)
    content = {"meta": META, "state_dict": old.model.state_dict()}
    new = runner(2, quantized=False)
    with caplog.at_level(logging.WARNING):
        assert load_training_state(new, content, "it.pth") == {}
    assert equal(old, new)
    assert new.pending is None
    assert new.average.begun == 1
    assert "it.pth has no state of average, which starts again" in caplog.text
    other = Average()
    new.companions = {"oscillation": other}
    load_training_state(new, content, "it.pth")
    assert (new.average.begun, other.begun) == (1, 0)


def test_on_another_number_of_ranks_the_generators_stay(caplog: pytest.LogCaptureFixture) -> None:
    old = runner(1)
    old.model[0].note = "set in training"
    content = training_state(old, META, {"iteration": 5})
    content["ranks"] *= 2
    new = runner(2)
    torch.manual_seed(7)
    with caplog.at_level(logging.INFO):
        load_training_state(new, content, "it.pth")
    drawn = torch.rand(3)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(7)))
    assert "it.pth was written by 2 ranks" in caplog.text
    assert new.pending is None
    assert new.model[0].note == "set in training"  # The same on all ranks.


def _statistics_of_ranks() -> tuple[Any, ...]:
    rank = collectives.rank()
    mine = runner(1)
    mine.model[1].running_mean.fill_(float(rank))
    mine.average.weights["a"].fill_(float(rank))
    before = copy.deepcopy(mine.model.state_dict())
    content = training_state(mine, META, {"iteration": 5})
    stored = None
    if content is not None:
        stored = content["state_dict"]["1.running_mean"].tolist()
        paths = [sorted(part["tensors"]) for part in content["ranks"]]
        stored = (stored, paths)
    content = collectives.broadcast_object(content)
    new = runner(2)
    load_training_state(new, content, "it.pth")
    same = all(torch.equal(new.model.state_dict()[k], v) for k, v in before.items())
    return stored, same, new.average.weights["a"].tolist()


def _diverged(name: str) -> list[str]:
    mine = runner(1)
    if collectives.rank() == 1:
        mine.model.state_dict()[name].add_(1.0)
    found = []
    for check in (lambda: training_state(mine, META, {}), lambda: compare_weights(mine.model)):
        try:
            check()
            found.append("")
        except RuntimeError as error:
            found.append(str(error))
    return found


DIVERGED = ("0.weight", "quantizers.x/out.observer.range_max")


def _of_ranks() -> tuple[Any, ...]:
    return _statistics_of_ranks(), [_diverged(name) for name in DIVERGED]


@pytest.mark.slow  # Each rank imports mmdet.
def test_ranks_continue_with_their_own_statistics_and_may_not_diverge() -> None:
    (statistics_0, diverged_0), (statistics_1, diverged_1) = run_ranks(_of_ranks, 2)
    (stored, *first), (nothing, *second) = statistics_0, statistics_1
    assert nothing is None
    assert stored[0] == [0.5] * 4  # What evaluation needs: the mean.
    mean = "state_dict\t1.running_mean"
    assert stored[1] == [[mean], ["companions\taverage\tweights\ta", mean]]
    assert first == [True, [0.0, 0.0]]
    assert second == [True, [1.0, 1.0]]
    assert diverged_0 == diverged_1
    (weight, weights), (range_max, no_weights) = diverged_0
    said = "1 weight or range differs between rank 1 and rank 0, first"
    assert weight.startswith(f"{said} 0.weight;")
    assert weights.startswith("1 weight or range differs between ranks, first 0.weight;")
    assert range_max.startswith(f"{said} x/out.observer.range_max;")
    assert no_weights == ""
