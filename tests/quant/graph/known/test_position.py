"""Which nodes are before or after all layers, which are depthwise, and what these layers read."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dq.quant.graph.known.position import positions
from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import quantizer_of
from dq.quant.graph.trace import trace
from dq.quant.numerics.spec import QuantSpec
from dq.quant.recipes.recipe import Recipe, Rule


class Branches(nn.Module):
    """Two ways from the input to the outputs, one of them without a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.side = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        begun = x.abs()
        between = self.one(begun).relu()
        return [self.two(between).sigmoid(), self.side(begun), begun.tanh() + between.exp()]


def test_each_node_knows_whether_layers_are_before_and_after_it() -> None:
    net = Branches()
    graph = trace(net)
    found = {node.name: set(where) for node, where in positions(net, graph).items()}
    assert found == {
        "x": {"first", "last_input"},  # `side` is a first and a last layer.
        "abs_1": {"first", "last_input"},
        "one": {"first", "last_input"},
        "relu": {"last_input"},
        "two": {"last"},
        "sigmoid": {"last"},
        "side": {"first", "last"},
        "tanh": {"first", "last"},
        "exp": {"last"},
        "add": {"last"},
        "output": {"last"},
    }
    assert torch.is_tensor(net(torch.rand(1, 3, 2, 2))[0])


class Chain(nn.Module):
    """Three layers, a function after each."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.three(self.two(self.one(x).relu()).relu().flip(2))


def test_an_input_of_a_last_layer_has_no_other_layer_between() -> None:
    net = Chain()
    graph = trace(net)
    where = positions(net, graph)
    found = [node.name for node in graph.nodes if "last_input" in where[node]]
    assert found == ["two", "relu_1", "flip"]


class Depthwise(nn.Module):
    """An inverted residual block, and convolutions with groups that are not depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(2, 6, 1)
        self.each = nn.Conv2d(6, 12, 3, padding=1, groups=6)  # Two outputs for each input channel.
        self.up = nn.ConvTranspose2d(12, 12, 2, groups=12)
        self.pairs = nn.Conv2d(12, 6, 1, groups=6)
        self.single = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = self.expand(x).relu()
        return self.pairs(self.up(self.each(wide).tanh())), self.single(x[:, :1])


def places(net: nn.Module, name: str) -> list[str]:
    """Return the nodes that have this position."""
    graph = trace(net)
    where = positions(net, graph)
    return [node.name for node in graph.nodes if name in where[node]]


def test_a_depthwise_layer_reads_one_channel_in_each_group() -> None:
    assert places(Depthwise(), "depthwise") == ["each", "up"]


def test_an_input_of_a_depthwise_layer_has_no_other_layer_between() -> None:
    assert places(Depthwise(), "depthwise_input") == ["expand", "relu", "each", "tanh"]


class Standardised(nn.Conv2d):
    """A convolution whose weight is computed in the graph."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", [nn.Conv2d, Standardised])
def test_quantized_depthwise_layers_are_found_however_they_are_called(
    kind: type[nn.Conv2d], groups: int
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), kind(4, 4, 3, groups=groups), nn.Conv2d(4, 2, 1))
    eight = Rule(position="depthwise", bits=8)
    read = Rule(position="depthwise_input", activation=QuantSpec(bits=7))
    recipe = Recipe(
        weight=QuantSpec(bits=4, symmetric=True, channel_axis=0),
        activation=QuantSpec(bits=4),
        rules=(read, eight),
    )
    graph = prepare(net, recipe)
    bits = {
        kind: [quantizer_of(graph, s.name).spec.bits for s in graph.sites if s.kind in kinds]
        for kind, kinds in (("weights", ("weight", "parameter")), ("outputs", ("activation",)))
    }
    wide = groups == 4
    assert bits["weights"] == [4, 8 if wide else 4, 4]
    assert bits["outputs"] == [4, 7 if wide else 4, 8 if wide else 4, 4]
