"""Which tensors are never negative, and the formats that follow without zero points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from dq.quant.graph.functions import find_functions
from dq.quant.graph.known.signs import never_negative
from dq.quant.graph.prepare import prepare
from dq.quant.numerics.spec import QuantSpec, without_zero_point
from dq.quant.recipes.presets import preset
from dq.quant.targets.registry import TARGETS
from tests.quant.nets import calibrate

pytestmark = pytest.mark.cpu

Call = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """Two convolutions with something between them, as a module if it is one.

    Args:
        between: Of one tensor.
        channels: Of its result, for 4.
    """

    def __init__(self, between: Call, channels: int = 4) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(channels, 4, 1)
        if isinstance(between, nn.Module):
            self.module = between
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.between(self.first(x)))
        return y


POSITIVE: dict[str, tuple[Call, int]] = {
    "relu": (torch.relu, 4),
    "relu6": (nn.ReLU6(), 4),
    "sigmoid": (torch.sigmoid, 4),
    "hard sigmoid": (nn.Hardsigmoid(), 4),
    "softplus": (F.softplus, 4),
    "squared": (torch.square, 4),
    "absolute": (torch.abs, 4),
    "clamp from 0": (lambda x: x.clamp(min=0, max=3), 4),
    "softmax": (lambda x: x.softmax(1), 4),
    "softmax module": (nn.Softmax(1), 4),
    "pooled": (lambda x: F.max_pool2d(x.relu(), 3, 1, 1), 4),
    "averaged": (lambda x: F.avg_pool2d(x.relu(), 3, 1, 1), 4),
    "joined": (lambda x: torch.cat([x.relu(), x.sigmoid()], 1), 8),
    "added": (lambda x: x.relu() + x.sigmoid(), 4),
    "multiplied": (lambda x: x.relu() * x.sigmoid(), 4),
    "resized": (lambda x: F.interpolate(x.relu(), scale_factor=2.0, mode="bilinear"), 4),
    "padded": (lambda x: F.pad(x.relu(), (1, 1, 1, 1)), 4),
}
NEGATIVE: dict[str, tuple[Call, int]] = {
    "nothing": (lambda x: x, 4),
    "silu": (F.silu, 4),
    "hard swish": (nn.Hardswish(), 4),
    "leaky relu": (nn.LeakyReLU(), 4),
    "prelu": (nn.PReLU(), 4),
    "gelu": (F.gelu, 4),
    "tanh": (torch.tanh, 4),
    "hard tanh": (nn.Hardtanh(), 4),
    "negative far away": (lambda x: torch.clamp(x + 100, -5, 5), 4),
    "joined": (lambda x: torch.cat([x.relu(), x], 1), 8),
    "subtracted": (lambda x: x.relu() - x.sigmoid(), 4),
    "subtracted by a factor": (lambda x: torch.add(x.relu(), x.sigmoid(), alpha=-1), 4),
    "shifted": (lambda x: x.relu() - 1, 4),
    "padded": (lambda x: F.pad(x.relu(), (1, 1, 1, 1), value=-1.0), 4),
    "bicubic": (lambda x: F.interpolate(x.relu(), scale_factor=2.0, mode="bicubic"), 4),
    "bicubic module": (nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=2, mode="bicubic")), 4),
    "normalized": (nn.Sequential(nn.ReLU(), nn.GroupNorm(2, 4)), 4),
}


@pytest.mark.parametrize("name", POSITIVE)
def test_values_of_0_or_more_are_known(name: str) -> None:
    assert _is_known(*POSITIVE[name])


@pytest.mark.parametrize("name", NEGATIVE)
def test_all_others_may_be_negative(name: str) -> None:
    assert not _is_known(*NEGATIVE[name])


def _is_known(between: Call, channels: int) -> bool:
    """Return whether the last layer's input is known to be 0 or more; it must be if so."""
    net = Net(between, channels).eval()
    graph = fx.symbolic_trace(net).graph
    (last,) = (node for node in graph.nodes if node.target == "last")
    known = last.all_input_nodes[0] in never_negative(net, graph, find_functions(net, graph))
    if known:
        with torch.no_grad():
            assert float(between(net.first(torch.randn(2, 3, 8, 8) * 50)).min()) >= 0
    return known


@pytest.mark.parametrize("learned", [None, "lsq", "lsq+", "pact"])
@pytest.mark.parametrize("target", TARGETS)
def test_no_tensor_but_the_image_has_a_zero_point(target: str, learned: str | None) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 4, 1),
    )  # fmt: skip
    images = torch.randn(2, 3, 16, 16)
    recipe = replace(preset("int8"), zero_points=False, learned=learned).for_target(target)
    with torch.no_grad():
        wanted = net.eval()(images)
    graph = prepare(net, recipe, examples=[images])
    calibrate(graph, [images])
    with torch.no_grad():
        found = graph(images)
    assert float((found - wanted).norm() / wanted.norm()) < 0.1
    zero_points = {name: int(q.zero_point) for name, q in graph.activations().items()}
    assert zero_points.pop(next(iter(zero_points))) > 0
    assert set(zero_points.values()) == {0}
    formats = {name: q.spec for name, q in graph.activations().items()}
    assert not formats["3/out"].signed
    assert formats["1/out"].signed


def test_a_symmetric_format_stays() -> None:
    spec = QuantSpec(signed=True, symmetric=True)
    assert without_zero_point(spec, is_never_negative=True) is spec
