"""Learned parameters: which there are, how they are grouped, and when they are left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dq.quant.graph.prepare import prepare
from dq.quant.quantizers.factory import (
    LEARNED,
    activation_quantizer,
    forget_momentum_,
    learned_parameters,
    regroup_,
    weight_quantizer,
)
from dq.quant.quantizers.fake_quantize import ActivationQuantizer, WeightQuantizer
from dq.quant.quantizers.learned_step import LsqActivationQuantizer, LsqWeightQuantizer
from dq.quant.quantizers.pact import PactActivationQuantizer
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import INT8_ACTIVATION, INT8_WEIGHT, Recipe

KINDS = {
    None: (ActivationQuantizer, WeightQuantizer),
    "lsq": (LsqActivationQuantizer, LsqWeightQuantizer),
    "lsq+": (LsqActivationQuantizer, LsqWeightQuantizer),
    "pact": (PactActivationQuantizer, WeightQuantizer),
}


def prepared(learned: str | None) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    graph = prepare(net.eval(), Recipe(learned=learned))
    for quantizer in graph.activations().values():
        quantizer.observer.range_min.fill_(-1.0)
        quantizer.observer.range_max.fill_(2.0)
    return net


@pytest.mark.parametrize("learned", [None, *LEARNED])
def test_each_setting_has_its_quantizers(learned: str | None) -> None:
    activation = activation_quantizer(learned, INT8_ACTIVATION, Recipe().activation_quantizer(
        INT8_ACTIVATION).observer)  # fmt: skip
    weight = weight_quantizer(learned, INT8_WEIGHT, num_channels=5)
    assert (type(activation), type(weight)) == KINDS[learned]
    offsets = [n for n, _ in activation.named_parameters() if "offset" in n]
    assert bool(offsets) is (learned == "lsq+")
    assert {len(p) for p in weight.parameters()} == ({5} if learned in ("lsq", "lsq+") else set())
    names = learned_parameters(nn.ModuleDict({"a": activation, "w": weight}))
    assert {name.partition(".")[0] for name in names} == {
        None: set(), "lsq": {"a", "w"}, "lsq+": {"a", "w"}, "pact": {"a"},
    }[learned]  # fmt: skip
    assert set(learned_parameters(activation)) == {n for n, _ in activation.named_parameters()}


@pytest.mark.parametrize("learned", [None, *LEARNED])
def test_learned_parameters_get_groups_of_their_own(learned: str | None) -> None:
    net = prepared(learned)
    names = {id(p): name for name, p in net.named_parameters()}
    weights = [net[0].weight, net[2].weight]
    others = [p for p in net.parameters() if all(p is not w for w in weights)]
    groups = [{"params": weights, "lr": 0.1}, {"params": others, "lr": 0.4}]
    optimizer = torch.optim.SGD(groups, lr=1.0, weight_decay=0.01, momentum=0.9)
    number = len(learned_parameters(net))
    assert regroup_(optimizer, net, lr_factor=0.5) == number
    found = [
        (sorted(names[id(p)] for p in group["params"]), group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
    ]
    assert found[:2] == [
        (["0.weight", "2.weight"], 0.1, 0.01), (["0.bias", "2.bias"], 0.4, 0.01),
    ]  # fmt: skip
    if learned is None:
        assert found[2:] == []
        return
    ((held, rate, decay),) = found[2:]
    assert len(held) == number > 0
    assert rate == 0.2
    assert decay == (0.01 if learned == "pact" else 0.0)
    assert optimizer.param_groups[2]["momentum"] == 0.9
    assert regroup_(optimizer, net) == number  # Again: nothing else moves, nothing is lost.
    again = {names[id(p)] for group in optimizer.param_groups for p in group["params"]}
    assert again == set(names.values())


@pytest.mark.parametrize("learned", LEARNED)
def test_the_optimizer_changes_them_in_one_phase_alone(learned: str) -> None:
    net = prepared(learned)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1, momentum=0.9)

    def step(phase: Phase) -> tuple[bool, bool]:
        """Return whether all learned parameters changed, and whether the weights did."""
        set_phase(net, phase)
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, 0.01)
        optimizer.step()
        changed = {n: not torch.equal(p, before[n]) for n, p in net.named_parameters()}
        mine = {changed[name] for name in learned_parameters(net)}
        assert len(mine) == 1
        return mine == {True}, changed["0.weight"]

    assert step(Phase.TRAIN) == (True, True)
    for phase in (Phase.OFF, Phase.OBSERVE, Phase.CALIBRATE, Phase.FROZEN):
        assert step(phase) == (False, True)
    kept = [p for p in learned_parameters(net).values() if p in optimizer.state]
    assert len(kept) == len(learned_parameters(net))
    forget_momentum_(optimizer, net)
    assert not any(p in optimizer.state for p in learned_parameters(net).values())
    assert net[0].weight in optimizer.state
    assert step(Phase.TRAIN) == (True, True)
