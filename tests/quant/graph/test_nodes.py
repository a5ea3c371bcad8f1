"""What a node computes, which nodes are sizes, and graphs as lists."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor, fx, nn

from dq.quant.graph.activation_nodes import settings
from dq.quant.graph.inputs import forward_with_inputs
from dq.quant.graph.nodes import (
    as_tuple,
    called_name,
    computed,
    flattened,
    is_shape,
    module_of,
    remembered,
    restored,
)


class Model(nn.Module):
    """Every kind of node, with keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.linear = nn.Linear(3, 2)
        self.inner.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        z = self.inner.linear(x) * self.inner.scale
        z = z.reshape(x.shape[0], -1).sum(dim=1, keepdim=True)
        return torch.sub(z, y, alpha=2), {"z": z}


def test_settings_of_a_module_and_of_a_function_are_the_same() -> None:
    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AvgPool2d(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(self.pool(x), 3, stride=2)

    root = Pools()
    _, *calls, _ = fx.Tracer().trace(root).nodes
    assert [settings(root, node, "kernel_size", "stride") for node in calls] == [[3, 2]] * 2
    names = ("kernel_size", "stride", "padding")
    assert settings(root, calls[1], *names, padding=0) == [3, 2, 0]


@pytest.fixture(scope="module")
def model() -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(Model())


def test_a_node_has_the_value_that_the_model_computes(model: fx.GraphModule) -> None:
    given = torch.randn(4, 3), torch.randn(4, 1)
    values: dict[fx.Node, object] = {}
    for node in model.graph.nodes:
        values[node] = computed(model, node, values.__getitem__, given)
    found, parts = values[node]  # type: ignore[misc]
    wanted, wanted_parts = model(*given)
    assert torch.equal(found, wanted)
    assert torch.equal(parts["z"], wanted_parts["z"])
    first, second = [node for node in model.graph.nodes if node.op == "placeholder"]
    assert values[first] is given[0]
    assert values[second] is given[1]
    assert as_tuple(given[0]) == (given[0],)
    assert as_tuple(given) is given


def test_only_calls_of_modules_have_a_module(model: fx.GraphModule) -> None:
    found = [module_of(model, node) for node in model.graph.nodes]
    assert [module for module in found if module is not None] == [model.inner.linear]


def test_sizes_are_told_from_values() -> None:
    class Sizes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            number = x.size(0) + x.shape[1] * 2
            zeros = x.new_zeros(number)
            return x.reshape(number, -1).add_(zeros.to(x.dtype)) + x.dim()

    graph = fx.symbolic_trace(Sizes()).graph
    sizes = {node.name for node in graph.nodes if is_shape(node)}
    assert {"size", "getattr_1", "getitem", "mul", "add", "new_zeros", "to", "dim"} <= sizes
    assert not {"x", "reshape", "add_", "output"} & sizes
    names = {called_name(node) for node in graph.nodes}
    assert {"add", "mul", "reshape", "new_zeros", "getitem"} <= names
    assert "add_" not in names
    assert called_name(next(n for n in graph.nodes if n.name == "add_")) == "add"


def test_a_rule_is_asked_once_for_each_node_and_its_inputs_first(model: fx.GraphModule) -> None:
    asked: list[fx.Node] = []

    def rule(node: fx.Node) -> bool:
        asked.append(node)
        return all(ask(other) for other in node.all_input_nodes)

    ask = remembered(rule)
    nodes = list(model.graph.nodes)
    assert ask(nodes[-1]) is True
    assert len(asked) == len(set(asked)) == len(nodes)
    for node in nodes:
        for other in node.all_input_nodes:
            assert asked.index(other) < asked.index(node)
    number = len(asked)
    assert all(ask(node) for node in nodes)
    assert len(asked) == number
    assert ask.__name__ == "rule"


def test_a_graph_as_a_list_is_the_same_graph(model: fx.GraphModule) -> None:
    nodes = list(model.graph.nodes)
    nodes[0].type = Tensor
    nodes[2].meta["mark"] = [1]
    again = restored(pickle.loads(pickle.dumps(flattened(model.graph))))
    assert str(again) == str(model.graph)
    found = list(again.nodes)
    assert [n.name for n in found] == [n.name for n in nodes]
    assert found[0].type is Tensor
    assert found[2].meta["mark"] == [1]
    given = torch.randn(4, 3), torch.randn(4, 1)
    assert torch.equal(fx.GraphModule(model, again)(*given)[0], model(*given)[0])


def test_a_function_has_the_names_of_its_inputs() -> None:
    class Owner:
        def add(self, *given: int) -> tuple[int, ...]:
            return given

    function = forward_with_inputs(["a", "b"], "add")
    assert function(Owner(), b=2, a=1) == (1, 2)
    assert function.__code__.co_varnames[:3] == ("self", "a", "b")
    for names, method in ((["a", "class"], "add"), (["1a"], "add"), ([""], "add"), (["a"], "a b")):
        with pytest.raises(ValueError, match="cannot be the name of an input"):
            forward_with_inputs(names, method)
