"""A function is found, and known for what it is, in whatever way a model computes it."""

from __future__ import annotations

import math
from collections.abc import Callable

import mmcv.cnn
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from dq.quant.graph import functions
from dq.quant.graph.functions import find_functions
from dq.quant.graph.trace import trace

Way = Callable[[Tensor], Tensor]

WAYS: dict[str, list[Way]] = {
    "sigmoid": [nn.Sigmoid(), torch.sigmoid, lambda x: x.sigmoid(), lambda x: 1 / (1 + (-x).exp())],
    "silu": [
        nn.SiLU(),
        nn.SiLU(inplace=True),
        F.silu,
        mmcv.cnn.Swish(),
        lambda x: x * torch.sigmoid(x),
        lambda x: x.sigmoid().mul(x),
        lambda x: x.mul_(x.sigmoid()),
        lambda x: x / (1 + torch.exp(-x)),
    ],
    "hardswish": [
        nn.Hardswish(),
        F.hardswish,
        mmcv.cnn.HSwish(),
        lambda x: x * F.relu6(x + 3) / 6,
        lambda x: x * (F.relu6(x + 3) / 6),
        lambda x: x * (x + 3).clamp(0, 6) * (1 / 6),
        lambda x: x * F.hardsigmoid(x),
    ],
    "hardsigmoid": [nn.Hardsigmoid(), F.hardsigmoid, lambda x: F.relu6(x + 3) / 6],
    "mish": [nn.Mish(), F.mish, lambda x: x * torch.tanh(F.softplus(x))],
    "gelu": [
        nn.GELU(),
        F.gelu,
        lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
        lambda x: x * 0.5 * (1.0 + torch.erf(x * 0.70710678)),
    ],
    "gelu_tanh": [
        nn.GELU(approximate="tanh"),
        lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ],
    "tanh": [nn.Tanh(), torch.tanh],
    "clip": [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-2, 2), torch.relu, lambda x: x.clamp(0, 1)],
    "leaky_relu": [
        nn.LeakyReLU(0.1),
        lambda x: F.leaky_relu(x, 0.2),
        lambda x: torch.max(x, 0.1 * x),
    ],
    "prelu": [nn.PReLU(), nn.PReLU(4)],
    "other": [nn.ELU(), nn.Softplus(), lambda x: x * torch.sigmoid(1.702 * x)],
}
# These are no functions, or not of one element.
NONE: list[Way] = [
    nn.Identity(),
    nn.InstanceNorm2d(4),
    nn.Softmax(1),
    nn.Dropout(),
    lambda x: x * 2 + 1,
    lambda x: x * x,
    lambda x: x + x.mean(),
]


class Called(nn.Module):
    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.way(x)


class Net(nn.Module):
    """The function between two convolutions."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.way = way if isinstance(way, nn.Module) else Called(way)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.way(self.first(x)))


def traced(net: nn.Module) -> fx.Graph:
    leaves = (mmcv.cnn.Swish, mmcv.cnn.HSwish)
    graph = trace(net.eval(), is_leaf=lambda module: isinstance(module, leaves))
    assert isinstance(graph, fx.Graph)
    return graph


def cases() -> list[tuple[str, Way]]:
    return [(kind, way) for kind, ways in WAYS.items() for way in ways]


@pytest.mark.parametrize(("kind", "way"), cases())
def test_function_is_known_however_it_is_computed(kind: str, way: Way) -> None:
    net = Net(way)
    graph = traced(net)
    (found,) = find_functions(net, graph)
    first, last = (next(n for n in graph.nodes if n.target == name) for name in ("first", "last"))
    assert found.kind == kind
    assert found.source is first
    assert found.value is last.args[0]


@pytest.mark.parametrize("way", NONE)
def test_what_is_no_function_of_single_elements_is_left_alone(way: Way) -> None:
    net = Net(way)
    assert find_functions(net, traced(net)) == []


class Gate(nn.Module):
    """Two functions in a row, a gate of another tensor, and a scaled function."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(torch.relu(self.a(x)))
        gated = y * torch.sigmoid(self.b(y))
        return 2 * F.silu(gated) + gated


def test_functions_in_a_row_and_gates_are_functions_of_their_own() -> None:
    net = Gate()
    found = find_functions(net, traced(net))
    assert [f.kind for f in found] == ["clip", "sigmoid", "sigmoid", "silu"]
    assert [len(f.nodes) for f in found] == [1, 1, 1, 1]


class Kept(nn.Module):
    """A part of the function that something else reads too."""

    def forward(self, x: Tensor) -> list[Tensor]:
        gate = torch.sigmoid(x)
        return [x * gate, gate]


def test_a_function_with_a_part_that_is_needed_elsewhere_is_not_one() -> None:
    net = Kept()
    assert [f.kind for f in find_functions(net, traced(net))] == ["sigmoid"]


def test_the_model_is_left_as_it_was() -> None:
    net = Net(nn.SiLU())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    graph = traced(net)
    code = str(graph)
    net.train()
    find_functions(net, graph)
    assert str(graph) == code
    assert net.training
    assert net.way.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# What is found in an expression: the kind of each function and how many nodes compute it.
EXPRESSIONS: dict[str, tuple[Way, list[tuple[str, int]]]] = {
    "relu and a sum": (lambda x: F.relu(x) + 1.0, [("clip", 1)]),
    "a scaled sigmoid": (lambda x: torch.sigmoid(x) * 2.0, [("sigmoid", 1)]),
    "a relu times a size": (lambda x: F.relu(x) * x.shape[1], [("clip", 1)]),
    "silu with another slope": (lambda x: x * torch.sigmoid(1.702 * x), [("other", 3)]),
    "two exponentials": (lambda x: torch.exp(x) * torch.exp(x), [("other", 3)]),
    "two in a row": (lambda x: torch.tanh(F.relu(x)), [("clip", 1), ("tanh", 1)]),
    "three in a row": (
        lambda x: torch.tanh(torch.sigmoid(F.relu(x))),
        [("clip", 1), ("sigmoid", 1), ("tanh", 1)],
    ),
    "a residual sum": (lambda x: torch.tanh(x) + x, [("tanh", 1)]),
    "a residual sum of silu": (lambda x: x + x * torch.sigmoid(x), [("silu", 2)]),
    "a difference": (lambda x: torch.exp(x) - 1.0, [("other", 1)]),
    "softplus": (lambda x: torch.log(1.0 + torch.exp(x)), [("other", 1), ("other", 1)]),
    "a condition": (lambda x: torch.where(x > 0, x, 0.1 * x), [("other", 2)]),
    "an absolute value": (lambda x: torch.abs(x), [("leaky_relu", 1)]),
    "a gate of the mean": (
        lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
        [("sigmoid", 1)],
    ),
    "a product of two": (
        lambda x: torch.tanh(torch.tanh(torch.tanh(x)) * torch.tanh(x)),
        [("other", 4), ("tanh", 1)],
    ),
    "channels that are moved": (nn.PixelShuffle(2), []),
    "a sum of itself": (lambda x: x + x, []),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_which_nodes_belong_to_a_function(name: str) -> None:
    way, wanted = EXPRESSIONS[name]
    net = nn.Sequential(nn.Conv2d(3, 4, 1), way if isinstance(way, nn.Module) else Called(way))
    assert [(f.kind, len(f.nodes)) for f in find_functions(net, traced(net))] == wanted


class Neighbours(nn.Module):
    """Each value also depends on the one beside it; or nothing does."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return x + self.share * x.roll(1, -1)


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise TypeError("it needs something else")


@pytest.mark.parametrize(
    ("module", "does"),
    [
        (nn.Tanh(), True),
        (Neighbours(0.0), True),
        (Neighbours(1e-3), False),
        (nn.Flatten(), False),
        (nn.Softmax(1), False),
        (Fails(), False),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_whether_a_module_maps_each_element(module: nn.Module, does: bool, training: bool) -> None:
    module.train(training)
    assert functions._maps_each_element(module) is does
    assert module.training is training
