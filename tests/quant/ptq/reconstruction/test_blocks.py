"""Blocks cover the graph once, in order, and are cut where few rounded values are alive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from dq.quant.graph.nodes import computed, module_of
from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.ptq.reconstruction.blocks import blocks_of, constants
from dq.quant.quantizers.fake_quantize import ActivationQuantizer
from dq.quant.quantizers.layers import QuantizedLayer
from dq.quant.recipes.recipe import Recipe
from tests.quant.nets import Separable, images


class Pyramid(nn.Module):
    """A stem, residual units, and a head shared by two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.units = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(9)])
        self.tower, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x).relu()
        for unit in self.units:
            x = x + unit(x).relu()
        levels = [x, nn.functional.max_pool2d(x, 2)]
        return [self.head(self.tower(level).relu()) for level in levels]


def is_layer(graph: QuantizedGraph, node: fx.Node) -> bool:
    return isinstance(module_of(graph.root, node), QuantizedLayer)


def test_together_they_compute_what_the_graph_computes() -> None:
    graph = prepare(Pyramid().eval(), Recipe())
    x = images()[0]
    values: dict[fx.Node, Any] = {}
    fixed = constants(graph.graph)
    for node in graph.graph.nodes:
        if node in fixed:
            values[node] = computed(graph.root, node, values.__getitem__, x)
    blocks = blocks_of(graph)
    seen: set[fx.Node] = set()
    for block in blocks:
        assert not seen & set(block.nodes)
        seen |= set(block.nodes)
        given = {node: values[node] for node in (*block.inputs, *fixed)}
        for node in block.nodes:
            given[node] = computed(graph.root, node, given.__getitem__, x)
        values |= {node: given[node] for node in block.outputs}
    wanted = graph(x)
    outputs = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    got = fx.map_arg(outputs, values.__getitem__)
    for own, want in zip(got, wanted, strict=True):
        assert torch.equal(own, want)


def test_they_have_some_layers_and_shared_ones_stay_together() -> None:
    graph = prepare(Pyramid().eval(), Recipe())
    blocks = blocks_of(graph, fewest=2, most=4)
    counts = [sum(is_layer(graph, node) for node in block.nodes) for block in blocks]
    assert sum(counts) == 14
    assert all(2 <= count <= 6 for count in counts[:-1])
    assert len(counts) >= 4
    for shared in ("tower", "head"):
        owners = [
            number
            for number, block in enumerate(blocks)
            for node in block.nodes
            if str(node.target) == f"quantizers.{shared}"
        ]
        assert len(owners) == 2
        assert len(set(owners)) == 1


def test_only_rounded_values_cross_a_cut_of_a_chain() -> None:
    graph = prepare(Separable().eval(), Recipe())
    blocks = blocks_of(graph, fewest=1, most=2)
    assert len(blocks) >= 3
    for block in blocks[1:]:
        (given,) = block.inputs
        assert isinstance(module_of(graph.root, given), ActivationQuantizer)


def test_constants_are_what_depends_on_no_input() -> None:
    root = nn.Module()
    root.weight = nn.Parameter(torch.ones(2))
    graph = fx.Graph()
    x = graph.placeholder("x")
    weight = graph.get_attr("weight")
    twice = graph.call_function(torch.mul, (weight, 2))
    product = graph.call_function(torch.mul, (x, twice))
    graph.output(product)
    assert constants(graph) == {weight, twice}
