"""A graph has the model's gradients, also where the model computes without them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dq.quant as dq


class Net(nn.Module):
    """A trunk, a branch beside it, and a last layer that reads both."""

    def __init__(self, join: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.join = join
        self.trunk, self.branch = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.untraceable = Untraceable()
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.join(self, self.trunk(x)))
        return y


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.inside(x)
        return (y, y.sin()) if y.sum() < 1e9 else (y, y)


def gate(net: Net, y: Tensor) -> Tensor:
    with torch.no_grad():
        weight = net.branch(y).sigmoid()
    return y * weight


@torch.no_grad()
def decorated(net: Net, y: Tensor) -> Tensor:
    return net.branch(y).relu()


def by_mode(net: Net, y: Tensor) -> Tensor:
    with torch.set_grad_enabled(net.training):
        y = net.branch(y)
    return y.relu()


def part(net: Net, y: Tensor) -> Tensor:
    with torch.no_grad():
        parts = net.branch(y).chunk(2, 1)
    one, two = parts
    return torch.cat([y[:, :2] * one, y[:, 2:] - two], 1)


def kept_whole(net: Net, y: Tensor) -> Tensor:
    with torch.no_grad():
        one, two = net.untraceable(y)
    return y * one + two


def again_with(net: Net, y: Tensor) -> Tensor:
    with torch.no_grad():
        weight = net.branch(y)
        with torch.enable_grad():
            y = net.branch(y)
        size = y.shape[2]
    return y * weight / size


def clamped(net: Net, y: Tensor) -> Tensor:
    with torch.no_grad():
        y.clamp_(-0.2, 0.3)
    return y


def clamped_result(net: Net, y: Tensor) -> Tensor:
    with torch.no_grad():
        other = y.clamp_(-0.2, 0.3)
        other += 1.0
    return other * y


def item(net: Net, y: Tensor) -> Tensor:
    with torch.no_grad():
        y[:, 0] = net.branch(y)[:, 1]
        y[:, 1:].mul_(2.0)
    return y


def own_tensor(net: Net, y: Tensor) -> Tensor:
    with torch.no_grad():
        mask = torch.zeros_like(y)
        mask[:, :2] += 1.0
        mask.add_(net.branch(y).relu_())
    return y * mask


JOINS = {
    join.__name__: join
    for join in (
        gate, decorated, by_mode, part, kept_whole, again_with,
        clamped, clamped_result, item, own_tensor,
    )
}  # fmt: skip


def gradients(run: Callable[[Tensor], Tensor], net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    images = x.clone().requires_grad_()
    run(images).square().sum().backward()
    named = {"images": images, **dict(net.named_parameters())}
    return {n: p.grad.clone() for n, p in named.items() if p.grad is not None}


@pytest.mark.parametrize("name", JOINS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("enabled", [False, True])
def test_gradients_are_those_of_the_model(name: str, training: bool, enabled: bool) -> None:
    x = torch.randn(2, 3, 5, 5)
    net = Net(JOINS[name]).train(training)
    twin = copy.deepcopy(net)
    wanted = gradients(twin, twin, x)
    with torch.set_grad_enabled(enabled):
        model = dq.prepare(net, dq.Recipe(), x)
    found = gradients(model, net, x)
    assert {n for n in found if not n.startswith("quantizers.")} == wanted.keys()
    for parameter, gradient in wanted.items():
        torch.testing.assert_close(found[parameter], gradient)


@pytest.mark.parametrize("name", JOINS)
def test_what_has_no_gradient_is_quantized_too(name: str) -> None:
    x = torch.randn(4, 3, 5, 5)
    net = Net(JOINS[name]).eval()
    model = dq.prepare(net, dq.preset("int16"), x)
    with torch.no_grad():
        wanted = model(x)
        dq.calibrate(model, [x])
        found = model(x)
    assert not torch.equal(found, wanted)
    assert (found - wanted).abs().max() < 2e-3 * wanted.abs().max()
    sites = {site.name for site in model.graph.sites}
    assert "branch" not in model.graph.left_float
    assert ("branch" in sites) is (name not in ("kept_whole", "clamped", "clamped_result"))
