"""Which nodes are before all layers, and which after all."""

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


def test_a_node_is_first_if_no_layer_is_before_it_and_last_if_none_follows() -> None:
    net = Branches()
    graph = trace(net)
    found = {node.name: set(where) for node, where in positions(net, graph).items()}
    assert found == {
        "x": {"first"},
        "abs_1": {"first"},
        "one": {"first"},
        "relu": set(),
        "two": {"last"},
        "sigmoid": {"last"},
        "side": {"first", "last"},
        "tanh": {"first", "last"},
        "exp": {"last"},
        "add": {"last"},
        "output": {"last"},
    }
    assert torch.is_tensor(net(torch.rand(1, 3, 2, 2))[0])
