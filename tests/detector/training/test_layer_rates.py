"""The trial of one step: what it finds, that it leaves nothing behind, and lower rates."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dq.detector.step.guards import Guards
from dq.detector.step.large_updates import announce
from dq.detector.step.update_ratios import is_learned, update_ratios
from dq.detector.training.layer_rates import lower_rates_
from dq.quant.graph.prepare import prepare
from dq.quant.quantizers.factory import initialise_weights_, regroup_
from dq.quant.quantizers.fake_quantize import update_scales_
from dq.quant.quantizers.learner import Learner
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe


class Two(nn.Module):
    """Two layers, the first with inputs of 0 to 255 and weights that fit them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.head = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        with torch.no_grad():
            self.stem.weight /= 255
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        noise = torch.rand(()) + random.random() + np.random.rand()
        return self.head(self.norm(self.stem(x)).tanh()) * noise.float()

    def train_step(self, batch: dict[str, Tensor], optimizer: Any) -> dict[str, Tensor]:
        return {"loss": (self(batch["img"]) - 1.0).square().mean()}


def batches() -> list[dict[str, Tensor]]:
    torch.manual_seed(1)
    return [{"img": torch.rand(8, 3) * 255} for _ in range(2)]


OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-3),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, weight_decay=1e-2),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_trial_leaves_nothing_behind(name: str) -> None:
    net = Two()
    net.norm.eval()
    optimizer = OPTIMIZERS[name](net.parameters())
    before = copy.deepcopy(net.state_dict())
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    state = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    ratios = update_ratios(net, optimizer, batches(), {"max_norm": 35})
    assert set(ratios) == {"stem.weight", "head.weight"}
    assert all(0 < ratio < math.inf for ratio in ratios.values())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.count == 0
    assert not optimizer.state
    assert all(p.grad is None for p in net.parameters())
    # The batches above reset torch's generator; the trial's own use of it is undone.
    assert random.getstate() == state[1]
    assert np.array_equal(np.random.get_state()[1], state[2])
    assert not net.norm.training
    assert net.training


def test_the_ratio_is_that_of_a_step() -> None:
    net = Two()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.0)
    ratios = update_ratios(net, optimizer, batches())
    # Adam's first step is the rate in every weight that has a gradient.
    weight = net.head.weight
    assert ratios["head.weight"] == pytest.approx(
        1e-3 * weight.numel() ** 0.5 / float(weight.detach().norm()), rel=1e-3
    )
    # The same gradients with momentum: ten times the step, in the end.
    plain, heavy = (
        update_ratios(net, torch.optim.SGD(net.parameters(), lr=1e-3, momentum=m), batches())
        for m in (0.0, 0.9)
    )
    # The noise of the forward pass is the same, because the generators are put back.
    torch.manual_seed(1)
    assert heavy["stem.weight"] / plain["stem.weight"] == pytest.approx(10.0, rel=1e-3)


def test_the_first_layer_of_unscaled_pixels_moves_most_with_sgd() -> None:
    net = Two()
    ratios = update_ratios(net, torch.optim.SGD(net.parameters(), lr=1e-3), batches())
    assert ratios["stem.weight"] > 100 * ratios["head.weight"]


def test_only_the_chosen_layers_get_a_lower_rate() -> None:
    net = Two()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    lower_rates_(optimizer, net, {"stem.weight": 0.01})
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rates.pop(id(net.stem.weight)) == pytest.approx(1e-5)
    assert set(rates.values()) == {1e-3}
    assert all(group["momentum"] == 0.9 for group in optimizer.param_groups)
    # The trial with these rates then moves it by a hundredth.
    plain = update_ratios(net, torch.optim.SGD(net.parameters(), lr=1e-3), batches())
    lowered = torch.optim.SGD(net.parameters(), lr=1e-3)
    lower_rates_(lowered, net, {"stem.weight": 0.01})
    again = update_ratios(net, lowered, batches())
    assert again["stem.weight"] == pytest.approx(0.01 * plain["stem.weight"], rel=1e-2)
    # An optimizer with a group for each parameter keeps one for each.
    single = torch.optim.SGD([{"params": [p]} for p in net.parameters()], lr=1e-3)
    lower_rates_(single, net, {"stem.weight": 0.01})
    assert len(single.param_groups) == len(list(net.parameters()))


class Quantized(nn.Module):
    """`Two` with quantizers that learn, as a training has them before its first step."""

    def __init__(self, learned: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        with torch.no_grad():
            self.stem.weight /= 255
            # A channel without weights; its scale says nothing.
            self.stem.weight[3] = 0.0
        object.__setattr__(self, "graph", prepare(self, Recipe(learned=learned)))
        set_phase(self, Phase.CALIBRATE)
        self.graph(torch.rand(64, 3) * 255)
        update_scales_(list(self.graph.activations().values()))
        initialise_weights_(self.graph.layers())
        set_phase(self, Phase.TRAIN)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).tanh())

    def train_step(self, batch: dict[str, Tensor], optimizer: Any) -> dict[str, Tensor]:
        return {"loss": (self.graph(batch["img"]) - 1.0).square().mean()}


LEARNED = {
    "lsq": {"learned_scale"},
    "lsq+": {"learned_scale", "learned_offset"},
    "pact": {"clip_min", "clip_max"},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("learned", LEARNED)
def test_updates_of_everything_that_quantizers_learn_are_found_and_limited(
    learned: str, name: str
) -> None:
    net = Quantized(learned)
    optimizer = OPTIMIZERS[name](net.parameters())
    regroup_(optimizer, net)
    before = copy.deepcopy(net.state_dict())
    ratios = update_ratios(net, optimizer, batches())
    own = {n: ratio for n, ratio in ratios.items() if is_learned(n)}
    assert set(own) == {n for n, _ in net.named_parameters() if is_learned(n)}
    assert {n.rpartition(".")[2] for n in own} == LEARNED[learned]
    assert all(0 <= ratio < math.inf for ratio in own.values())
    assert max(own.values()) > 0
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not optimizer.state
    learners = [module for module in net.modules() if isinstance(module, Learner)]
    assert {module.phase for module in learners} == {Phase.TRAIN}
    # With the rates that follow, no step goes further than the limit.
    limit = max(own.values()) / 10
    lower_rates_(optimizer, net, {n: limit / ratio for n, ratio in own.items() if ratio > limit})
    again = update_ratios(net, optimizer, batches())
    # A small step of a bound of 255 is rounded to float32.
    assert all(again[n] <= 1.1 * limit for n in own)


def test_a_step_of_adam_is_measured_against_the_smallest_scale() -> None:
    net = Quantized("lsq")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.0)
    regroup_(optimizer, net)
    ratios = update_ratios(net, optimizer, batches())
    (name,) = (n for n in ratios if is_learned(n) and "stem" in n and ".weight." in f".{n}")
    scale = net.get_parameter(name).detach()
    # Adam's first step is the rate. The channel without weights does not count.
    assert scale[3] == 1.0
    assert ratios[name] == pytest.approx(1e-4 / float(scale[:3].min()), rel=1e-2)


def test_without_a_recipe_it_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = torch.optim.SGD(Two().parameters(), lr=0.1)
    announce({"stem.weight": 0.02, "head.weight": 0.01}, optimizer, Guards())
    assert not caplog.messages
    announce({"stem.weight": 5.0, "head.weight": 0.01}, optimizer, Guards())
    (line,) = caplog.messages
    assert "one step at a learning rate of 0.1 moves the weights of stem by 5 times" in line
    assert "1 of 2 layers" in line
    assert "'optimizer.lr': 0.0006" in line
    with pytest.raises(RuntimeError, match="moves the weights of stem"):
        announce({"stem.weight": 5.0}, optimizer, Guards(runaway="stop"))
    caplog.clear()
    scale = "quantizers.stem.weight.learned_scale"
    announce({"stem.weight": 0.02, scale: 0.5}, optimizer, Guards())
    assert not caplog.messages
    announce({"stem.weight": 0.02, scale: 6.0}, optimizer, Guards())
    (line,) = caplog.messages
    assert "moves stem.weight.learned_scale by 6 times the scale" in line
    assert "20 times guards.max_update, 0.6" in line
    assert "1 of 1 quantizer parameter would" in line
    assert "quant.learned_lr=0.1" in line
