"""Which nodes are before all layers, which after all, and which are read by last layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dq.quant.graph.known.position import positions
from dq.quant.graph.trace import trace


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
