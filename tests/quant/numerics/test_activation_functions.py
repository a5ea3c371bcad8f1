"""What the descriptions say of each function holds for torch, however the function is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from dq.quant.graph.functions import find_functions
from dq.quant.integer.engine.nodes import activation_function
from dq.quant.integer.engine.nodes import clip_of as clip_of_engine
from dq.quant.numerics.activation_functions import FUNCTIONS, NAMED, WRITTEN, ActivationFunction

X = torch.linspace(-9.0, 9.0, 181)
SIMPLE = [each for each in FUNCTIONS if each.name != "prelu"]
WAYS = [(each, way) for way, each in WRITTEN.items() if each.name != "prelu"]
# What the engine computes with its own arithmetic; the others are clips.
EXACT = {"sigmoid", "tanh", "erf", "hardsigmoid", "hardswish", "silu", "gelu", "mish"}
EXACT |= {"leaky_relu", "elu", "softplus"}


def called(way: Any, x: Tensor) -> Tensor:
    result: Tensor
    if isinstance(way, str):
        result = getattr(x.clone(), way)()
    else:
        result = way()(x) if isinstance(way, type) else way(x.clone())
    return result


def graph_of(way: Any) -> tuple[fx.GraphModule, fx.Node]:
    """Return a network that calls a function in one way, and the node that does."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    if isinstance(way, str):
        node = graph.call_method(way, (x,))
    elif isinstance(way, type):
        node = graph.call_module("function", (x,))
    else:
        node = graph.call_function(way, (x,))
    graph.output(node)
    root = {"function": way()} if isinstance(way, type) else {}
    return fx.GraphModule(root, graph), node


@pytest.mark.parametrize(("function", "way"), WAYS)
def test_every_way_to_write_a_function_computes_it(function: ActivationFunction, way: Any) -> None:
    assert torch.equal(called(way, X), function.compute(X.clone()))


@pytest.mark.parametrize(("function", "way"), WAYS)
def test_graph_and_engine_know_every_way(function: ActivationFunction, way: Any) -> None:
    network, node = graph_of(way)
    (found,) = find_functions(network, network.graph)
    if function.is_recognised:
        assert found.kind == function.name
    arithmetic = activation_function(network, node)
    assert (arithmetic is not None) == (function.name in EXACT)
    if arithmetic is not None:
        torch.testing.assert_close(arithmetic(X), function.compute(X), rtol=1e-5, atol=1e-6)
    clip = clip_of_engine(network, node)
    assert (clip is not None) == (function.clip is not None)
    if clip is not None:
        assert found.kind == "clip"
        assert torch.equal(X.clamp(*clip), function.compute(X.clone()))


@pytest.mark.parametrize("function", SIMPLE)
def test_bounds_and_scaling_are_those_of_the_values(function: ActivationFunction) -> None:
    values = function.compute(X.clone())
    if function.bounds is not None:
        low, high = function.bounds
        assert low <= values.min() < low + 1e-3
        assert high - 1e-3 < values.max() <= high
    scaled = function.compute(2 * X)
    assert torch.allclose(scaled, 2 * values) == function.scales


def test_prelu_scales_with_one_slope_for_each_channel() -> None:
    x = torch.randn(2, 3, 4)
    layer = nn.PReLU(3)
    assert NAMED["prelu"].scales
    torch.testing.assert_close(layer(4 * x), 4 * layer(x))


def test_defaults_of_settings_are_those_of_the_modules() -> None:
    compared = {
        (each.name, name): (getattr(module(), name), default)
        for each in FUNCTIONS
        for module in each.modules
        for name, default in each.settings.items()
    }
    assert len(compared) == sum(len(each.settings) for each in FUNCTIONS) == 7
    for place, (theirs, ours) in compared.items():
        assert theirs == ours, place


def test_what_is_recognised_by_its_values_and_what_is_one_operation_stays() -> None:
    assert [each.name for each in FUNCTIONS if each.is_recognised] == [
        "sigmoid", "silu", "hardswish", "hardsigmoid", "mish", "gelu", "gelu_tanh", "tanh"
    ]  # fmt: skip
    assert [each.name for each in FUNCTIONS if each.is_one_operation] == [
        "hardswish", "hardsigmoid", "mish", "gelu"
    ]  # fmt: skip
    assert [each.name for each in FUNCTIONS if each.scales] == ["relu", "leaky_relu", "prelu"]
    assert [each.name for each in FUNCTIONS if each.bounds] == ["sigmoid", "hardsigmoid", "tanh"]


def test_no_way_is_that_of_two_functions_and_no_name_occurs_twice() -> None:
    ways = [way for each in FUNCTIONS for way in (*each.modules, *each.calls, *each.methods)]
    assert len(ways) == len(WRITTEN)
    assert len(NAMED) == len(FUNCTIONS)
