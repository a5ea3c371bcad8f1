"""Models of any depth: nothing recurses over the nodes of a graph."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from dq.quant.graph.nodes import flattened, restored
from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.graph.trace import trace
from dq.quant.integer.convert import integer_network
from dq.quant.recipes.recipe import Recipe
from tests.quant.nets import calibrate

DEPTH = 400
# Frames of a call: enough for torch's own, and fewer than nodes.
FRAMES = 200


@pytest.fixture(autouse=True)
def _few_frames() -> Iterator[None]:
    """Lower the limit of recursion: a model deeper than Python's would take minutes."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + FRAMES)
    yield
    sys.setrecursionlimit(before)


class Deep(nn.Module):
    """A chain of many operations, and a weight computed from its end or from a chain of its own."""

    def __init__(self, *, of_input: bool) -> None:
        super().__init__()
        self.of_input = of_input
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, factor = self.first(x), self.last.weight
        for _ in range(DEPTH):
            x, factor = x.abs(), factor.sin()
        return F.conv2d(self.last(x), factor * (x.mean() if self.of_input else 1.0))


def copied(graph: QuantizedGraph, folder: Path) -> QuantizedGraph:
    return copy.deepcopy(graph)


def pickled(graph: QuantizedGraph, folder: Path) -> QuantizedGraph:
    found: QuantizedGraph = pickle.loads(pickle.dumps(graph))
    return found


def saved(graph: QuantizedGraph, folder: Path) -> QuantizedGraph:
    torch.save(graph, folder / "graph.pth")
    found: QuantizedGraph = torch.load(folder / "graph.pth", weights_only=False)
    return found


@torch.no_grad()
@pytest.mark.parametrize("of_input", [True, False])
@pytest.mark.parametrize("again", [copied, pickled, saved])
def test_a_deep_model_is_prepared_calibrated_stored_and_converted(
    tmp_path: Path, of_input: bool, again: Callable[[QuantizedGraph, Path], QuantizedGraph]
) -> None:
    assert sys.getrecursionlimit() < DEPTH
    graph = prepare(Deep(of_input=of_input).eval(), Recipe())
    x = torch.rand(1, 3, 2, 2)
    calibrate(graph, [x])
    kinds = [site.kind for site in graph.sites]
    assert kinds.count("weight") + kinds.count("parameter") == (2 if of_input else 3)
    wanted = graph(x)
    other = again(graph, tmp_path)
    assert torch.equal(other(x), wanted)
    network = integer_network(other)
    torch.testing.assert_close(network(x), integer_network(graph)(x), rtol=0, atol=0)


def test_a_chain_of_functions_is_prepared() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            for _ in range(DEPTH):
                x = torch.tanh(x)
            return x

    assert "conv" in {site.name for site in prepare(Chain(), Recipe()).sites}


def test_a_graph_comes_back_from_its_list_node_by_node() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.scale = nn.Conv2d(3, 4, 1), nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor, y: Tensor) -> dict[str, object]:
            z = torch.cat([self.conv(x), y[:, 1:, None, 0]], dim=1) * self.scale
            return {"sizes": (z.size(0), [z.shape[1]]), "out": F.pad(z, (1, 0)).clamp(min=0)}

    graph = trace(Mixed(), examples=[torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)])
    found = restored(pickle.loads(pickle.dumps(flattened(graph))))
    found.lint()
    assert found.python_code("self").src == graph.python_code("self").src
    for one, other in zip(graph.nodes, found.nodes, strict=True):
        assert (one.name, one.op, one.type, one.meta) == (
            other.name, other.op, other.type, other.meta,
        )  # fmt: skip
        assert one.target == other.target
    assert isinstance(found, fx.Graph)
