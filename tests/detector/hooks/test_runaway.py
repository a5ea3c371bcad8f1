"""A loss or weights that diverge are reported, and nothing is read between two checks."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dq.detector.hooks.runaway import RunawayHook, movements
from dq.detector.step.guards import Guards
from dq.detector.step.losses import LossValues
from dq.quant.graph.quantized_graph import CONTAINER
from dq.quant.numerics.spec import QuantSpec
from dq.quant.quantizers.learned_step import LsqWeightQuantizer
from dq.tracking.tracker import Tracker


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 1, 3)


def runner(net: nn.Module) -> Any:
    return SimpleNamespace(
        model=net, iter=0, max_iters=1000, optimizer_step=None, tracker=Tracker(),
        current_lr=lambda: [0.5],
    )  # fmt: skip


def steps(hook: RunawayHook, it: Any, losses: list[float]) -> None:
    for it.iter, loss in enumerate(losses):
        it.outputs = {"log_vars": LossValues({"loss": torch.tensor(loss)})}
        hook.after_train_iter(it)


def test_movement_is_relative_to_the_initial_norm() -> None:
    net = Net()
    before = {n: p.detach().clone() for n, p in net.named_parameters() if p.dim() > 1}
    with torch.no_grad():
        net.first.weight.mul_(3.5)
    assert movements(net, before, {}) == {
        "first.weight": pytest.approx(2.5, rel=1e-5), "second.weight": 0.0,
    }  # fmt: skip
    with torch.no_grad():
        net.second.weight[0, 0, 0, 0] = float("nan")
    assert movements(net, before, {})["second.weight"] == float("inf")


def test_the_layer_is_named_once_and_again_at_twice_the_distance(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net = Net()
    it, hook = runner(net), RunawayHook(Guards())
    hook.before_run(it)
    with torch.no_grad():
        net.first.weight.mul_(3.0)
    with caplog.at_level(logging.WARNING):
        steps(hook, it, [1.0] * 20)
        assert len(caplog.records) == 1
        text = caplog.records[0].getMessage()
        assert text.startswith("step 1: the weights of first have moved by 2 times their norm")
        assert "learning rate of 0.5" in text
        assert "lower optimizer.lr" in text
        with torch.no_grad():
            net.first.weight.mul_(3.0)
        steps(hook, it, [1.0] * 20)
    assert len(caplog.records) == 2


def test_a_learned_scale_that_runs_away_is_named(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    spec = QuantSpec(bits=8, signed=True, symmetric=True, channel_axis=0)
    quantizers = nn.ModuleDict({"first/weight": LsqWeightQuantizer(spec, num_channels=3)})
    net.add_module(CONTAINER, quantizers)
    scale = net.get_parameter(f"{CONTAINER}.first/weight.learned_scale")
    with torch.no_grad():
        # The last channel has no weights.
        scale.copy_(torch.tensor([1e-3, 2e-3, 1.0]))
    it, hook = runner(net), RunawayHook(Guards())
    hook.before_run(it)
    with torch.no_grad():
        scale[:2].mul_(0.2)
    with caplog.at_level(logging.WARNING):
        steps(hook, it, [1.0] * 20)
        assert not caplog.records
        with torch.no_grad():
            scale[:2].mul_(-40.0)
        steps(hook, it, [1.0] * 20)
    text = caplog.records[0].getMessage()
    assert text.startswith(
        "step 1: learned_scale of quantizer first/weight has moved by 6 times the scale"
    )
    assert "quant.learned_lr" in text


def test_a_growing_loss_ends_the_training_if_requested() -> None:
    net = Net()
    it, hook = runner(net), RunawayHook(Guards(runaway="stop"))
    hook.before_run(it)
    losses = [2.0, 2.0, 2.0, 2.0] + [20.0] * 12
    with pytest.raises(RuntimeError, match=r"step 8: the loss is .* times what it began with"):
        steps(hook, it, losses)
    calm = RunawayHook(Guards(runaway="stop"))
    calm.before_run(it)
    steps(calm, it, [2.0, 5.0, 1.0, 3.0] * 30)


def test_nothing_is_read_between_two_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    it, hook = runner(net), RunawayHook(Guards(look_every=64))
    hook.before_run(it)
    read: list[int] = []
    original = Tensor.tolist
    monkeypatch.setattr(
        Tensor, "tolist", lambda self: (read.append(it.iter + 1), original(self))[1]
    )
    steps(hook, it, [1.0] * 200)
    assert sorted(set(read)) == [1, 2, 4, 8, 16, 32, 64, 128, 192]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"runaway": "warm"}, "guards.runaway is 'warm'; use 'warn' or 'stop' or 'off'"),
        ({"worse": "off"}, "guards.worse is 'off'; use 'warn' or 'stop'"),
        ({"look_every": 0}, "guards.look_every is 0; use a whole number from 1"),
        ({"max_loss_growth": 1.0}, "guards.max_loss_growth is 1.0; it must be more than 1"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        Guards(**settings)
