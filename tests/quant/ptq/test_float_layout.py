"""Weights with scaled channels are stored as the float model's, and come back bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from dq.quant.graph.per_channel.channel_scales import ChannelScale
from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.ptq.channel_scales import scale_channels_
from dq.quant.ptq.float_layout import restore_scaled_, scaled_weights, to_float, to_scaled
from dq.quant.recipes.recipe import Recipe
from tests.quant.nets import images
from tests.quant.ptq.test_channel_scales import RECIPES, Stem, stem


def weights(graph: QuantizedGraph) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in graph.root.named_parameters()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def near(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.allclose(first[k], second[k], rtol=3e-7, atol=0) for k in first
    )


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_the_float_models_weights_are_found_again(recipe: Recipe) -> None:
    graph, _ = stem(recipe)
    before = weights(graph)
    assert scale_channels_(graph, images(), most=1)
    scaled = weights(graph)
    assert not near(scaled, before)
    assert near(to_float(graph, scaled), before)
    assert near(to_scaled(graph, before), scaled)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_no_bit_is_lost_on_the_way(recipe: Recipe) -> None:
    graph, _ = stem(recipe)
    assert scale_channels_(graph, images(), most=1)
    with torch.no_grad():
        for parameter in graph.root.parameters():
            parameter.mul_(1 + 0.3 * torch.rand_like(parameter))  # It was trained on.
    trained = weights(graph)
    stored = to_float(graph, trained)
    graph.root.load_state_dict(stored, strict=False)
    restore_scaled_(graph, scaled_weights(graph, trained))
    assert equal(weights(graph), trained)


def test_weights_that_were_changed_since_are_scaled_anew() -> None:
    graph, _ = stem(RECIPES["int8"])
    assert scale_channels_(graph, images(), most=1)
    trained = weights(graph)
    changed = {k: v * 2 for k, v in to_float(graph, trained).items()}
    graph.root.load_state_dict(changed, strict=False)
    restore_scaled_(graph, scaled_weights(graph, trained))
    assert near(weights(graph), {k: v * 2 for k, v in trained.items()})


def test_two_scaled_tensors_share_a_layer() -> None:
    """The depthwise layer reads one and writes the other."""
    torch.manual_seed(0)
    net = Stem()
    net.depthwise.weight.data[2] *= 300
    net.norm.weight.data[5] = 100.0
    graph = prepare(copy.deepcopy(net).eval(), RECIPES["onnxruntime"])
    before = weights(graph)
    assert scale_channels_(graph, images(), most=4)
    assert near(to_float(graph, weights(graph)), before)


def test_a_graph_without_scales_changes_nothing() -> None:
    graph, _ = stem(RECIPES["int8"])
    before = weights(graph)
    assert equal(to_float(graph, before), before)
    assert scaled_weights(graph, before) == {}
    restore_scaled_(graph, {})
    assert equal(weights(graph), before)
    assert not any(isinstance(module, ChannelScale) for module in graph.quantizers.modules())
