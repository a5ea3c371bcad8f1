"""A checkpoint's content: what plain mmdet reads, and quantizers that only their model takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from dq.detector.model.checkpoint_content import (
    QUANTIZATION,
    SCALED,
    compose,
    load_quantization,
    originals_of,
    recipe_of,
    repaired_state,
)
from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.numerics.spec import QuantSpec
from dq.quant.recipes.recipe import Recipe, Rule

RECIPE = Recipe(
    rules=(
        Rule(module="1", activation=QuantSpec(bits=16), weight=QuantSpec(bits=4, signed=True)),
        Rule(module="none.*", quantize=False),
    )
)


def prepared(recipe: Recipe) -> QuantizedGraph:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    graph = prepare(net, recipe)
    for quantizer in graph.activations().values():
        quantizer.observer.range_min.fill_(-1.0)
        quantizer.observer.range_max.fill_(2.0)
    return graph


def content_of(graph: QuantizedGraph, recipe: Recipe, **more: Any) -> dict[str, Any]:
    return compose(graph.root, graph=graph, recipe=recipe, meta={"epoch": 3}, **more)


def test_weights_have_the_float_models_names_and_quantizers_their_own_section() -> None:
    graph = prepared(Recipe())
    content = content_of(graph, Recipe())
    assert set(content) == {"meta", "state_dict", QUANTIZATION}
    assert set(content["state_dict"]) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert content["meta"]["epoch"] == 3
    assert set(content[QUANTIZATION]["state"]) == set(graph.quantizers.state_dict())
    optimizer = torch.optim.SGD(graph.root.parameters(), 0.5)
    with_optimizer = content_of(graph, Recipe(), optimizer=optimizer)
    assert with_optimizer["optimizer"]["param_groups"][0]["lr"] == 0.5


def test_repaired_weights_are_apart_from_the_float_models() -> None:
    graph = prepared(Recipe())
    plain = {k: v.clone() for k, v in content_of(graph, Recipe())["state_dict"].items()}
    originals = {"0.weight": graph.root[0].weight.detach().clone()}
    with torch.no_grad():
        graph.root[0].weight.clamp_(-0.1, 0.1)
    content = content_of(graph, Recipe(), originals=originals)
    assert content["state_dict"].keys() == plain.keys()
    assert all(torch.equal(v, plain[k]) for k, v in content["state_dict"].items())
    repaired = repaired_state(content, "test")
    assert torch.equal(repaired["0.weight"], graph.root[0].weight)
    assert torch.equal(repaired["2.weight"], plain["2.weight"])
    found = originals_of(graph, content, "test")
    assert found.keys() == originals.keys()
    assert torch.equal(found["0.weight"], originals["0.weight"])
    # Others than calibrated checkpoints have nothing of the kind.
    older = content_of(graph, Recipe())
    del older[QUANTIZATION]["repaired_weights"]
    for other in (older, {"state_dict": plain}, content_of(graph, Recipe())):
        assert originals_of(graph, other, "test") == {}
        state = repaired_state(other, "test")
        assert all(torch.equal(v, other["state_dict"][k]) for k, v in state.items())


def test_a_float_checkpoint_has_no_quantizers_and_no_recipe() -> None:
    net = nn.Conv2d(3, 4, 3)
    content = compose(net, graph=None, recipe=None, meta={})
    assert QUANTIZATION not in content
    assert recipe_of(content) is None
    with pytest.raises(ValueError, match=r"a\.pth is a float checkpoint; calibrate it first"):
        load_quantization(prepared(Recipe()), content, "a.pth")


@pytest.mark.parametrize("with_digest", [True, False])
def test_ranges_are_loaded_if_they_are_those_of_the_digest(with_digest: bool) -> None:
    content = content_of(prepared(Recipe()), Recipe())
    if not with_digest:  # Written by an older version.
        del content[QUANTIZATION]["digest"], content[QUANTIZATION][SCALED]
    other = prepared(Recipe())
    for quantizer in other.activations().values():
        quantizer.observer.range_max.fill_(9.0)
    load_quantization(other, content, "a.pth")
    assert all(float(q.observer.range_max) == 2.0 for q in other.activations().values())
    content[QUANTIZATION]["state"]["x/out.observer.range_max"].fill_(3.0)
    if not with_digest:
        load_quantization(other, content, "a.pth")
        assert float(other.activations()["x/out"].observer.range_max) == 3.0
        return
    with pytest.raises(ValueError, match="do not match the digest that was written with them"):
        load_quantization(other, content, "a.pth")
    assert all(float(q.observer.range_max) == 2.0 for q in other.activations().values())


@pytest.mark.parametrize("more", [True, False])
def test_quantizers_of_another_recipe_are_refused(more: bool) -> None:
    fewer = Recipe(outputs=False)
    stored, own = (fewer, Recipe()) if more else (Recipe(), fewer)
    content = content_of(prepared(stored), stored)
    with pytest.raises(ValueError, match=r"a\.pth was quantized in another way: .*first: 2/out"):
        load_quantization(prepared(own), content, "a.pth")


@pytest.mark.parametrize(
    "recipe", [Recipe(), RECIPE, replace(RECIPE, raised=("x/out",), learned="lsq", outputs=False)]
)
def test_a_recipe_comes_back_from_plain_values(recipe: Recipe) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)).eval()
    plain = replace(recipe, rules=())
    graph = prepare(net, plain)
    content = compose(net, graph=graph, recipe=recipe, meta={})
    assert recipe_of(content) == recipe
    del content[QUANTIZATION]["recipe"]["raised"]  # Written by an older version.
    assert recipe_of(content) == replace(recipe, raised=())


@pytest.mark.parametrize("key", ["observer", "target"])
def test_a_name_of_the_users_own_that_is_not_registered_is_said(key: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)).eval()
    content = compose(net, graph=prepare(net, Recipe()), recipe=Recipe(), meta={})
    content[QUANTIZATION]["recipe"][key] = "own"
    with pytest.raises(ValueError, match=f"{key} 'own' does not exist.*custom_imports"):
        recipe_of(content)
