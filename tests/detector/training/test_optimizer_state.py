"""An optimizer resumes with its old settings or the config's, or is refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from dq.detector.training.optimizer_state import load_optimizer_

KINDS: dict[str, Any] = {
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "plain sgd": lambda p: SGD(p, lr=0.1),
    "adam": lambda p: Adam(p, lr=0.1),
    "amsgrad": lambda p: Adam(p, lr=0.1, amsgrad=True),
    "adamw": lambda p: AdamW(p, lr=0.1),
    "rmsprop": lambda p: RMSprop(p, lr=0.1),
    "centered": lambda p: RMSprop(p, lr=0.1, centered=True, momentum=0.9),
}
FAMILY = dict(zip(KINDS, (0, 0, 1, 1, 1, 2, 2), strict=True))


def stepped(kind: str) -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    optimizer = KINDS[kind](net.parameters())
    for _ in range(2):
        step(net, optimizer)
    return net, optimizer


def step(net: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    net(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("now", KINDS)
@pytest.mark.parametrize("before", KINDS)
def test_any_optimizer_after_any_other_works_or_is_refused_in_one_line(
    before: str, now: str
) -> None:
    net, former = stepped(before)
    state = copy.deepcopy(former.state_dict())
    optimizer = KINDS[now](net.parameters())
    load_optimizer_(optimizer, state, "f.pth", new_settings=True)
    step(net, optimizer)
    optimizer = KINDS[now](net.parameters())
    # Similar optimizers have the same state per parameter; their settings distinguish them.
    if FAMILY[before] == FAMILY[now]:
        load_optimizer_(optimizer, copy.deepcopy(state), "f.pth", new_settings=False)
        step(net, optimizer)
        return
    with pytest.raises(ValueError, match=r"f\.pth has the state of another optimizer") as caught:
        load_optimizer_(optimizer, copy.deepcopy(state), "f.pth", new_settings=False)
    assert "--resume-with optimizer" in str(caught.value)


def test_a_new_rate_keeps_the_momentum() -> None:
    net, former = stepped("sgd")
    state = copy.deepcopy(former.state_dict())
    state["param_groups"][0]["initial_lr"] = 0.1  # As after mmcv's learning rate hooks.
    optimizer = SGD(net.parameters(), lr=0.025, momentum=0.9)
    load_optimizer_(optimizer, state, "f.pth", new_settings=True)
    assert optimizer.param_groups[0]["lr"] == 0.025
    assert "initial_lr" not in optimizer.param_groups[0]
    kept = optimizer.state[net.weight]["momentum_buffer"]
    assert torch.equal(kept, former.state[net.weight]["momentum_buffer"])
    optimizer = SGD(net.parameters(), lr=0.025, momentum=0.9)
    load_optimizer_(optimizer, state, "f.pth", new_settings=False)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_other_parameters() -> None:
    net, former = stepped("sgd")
    groups = [{"params": [net.weight]}, {"params": [net.bias], "lr": 0.2}]
    optimizer = SGD(groups, lr=0.1, momentum=0.9)
    fewer = SGD([net.weight], lr=0.1, momentum=0.9)
    for own, stored in ((optimizer, former), (fewer, former), (former, fewer), (former, optimizer)):
        with pytest.raises(ValueError, match="an optimizer of other parameters"):
            load_optimizer_(own, stored.state_dict(), "f.pth", new_settings=False)
    load_optimizer_(optimizer, former.state_dict(), "f.pth", new_settings=True)
    assert not optimizer.state
    step(net, optimizer)
