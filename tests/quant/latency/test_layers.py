"""The layer that an executed operator belongs to."""

from __future__ import annotations

import itertools
import re

import numpy as np
import onnx
import pytest

from dq.quant.latency.engine import Executed
from dq.quant.latency.float_twin import float_twin
from dq.quant.latency.layers import absorbed, by_layer, with_layer_numbers
from dq.quant.recipes.recipe import Recipe, Rule
from dq.quant.verify.onnxruntime_session import OnnxNetwork
from tests.quant.latency.models import images, int8_model, model_of

pytestmark = pytest.mark.cpu

# In the order of execution.
MODULES = ["stem", "depthwise", "shared", "shared", "up", "last"]


def number_of(name: str) -> int:
    return int(name.rpartition("@layer")[2].partition("@")[0])


@pytest.mark.parametrize("is_twin", [False, True])
def test_every_node_has_the_number_of_its_layer(is_twin: bool) -> None:
    model = float_twin(int8_model()) if is_twin else int8_model()
    numbered, layers = with_layer_numbers(model)
    onnx.checker.check_model(numbered, full_check=True)
    assert len(layers) == len(MODULES)
    found = [number_of(node.name) for node in numbered.graph.node]
    assert set(found) == set(range(len(MODULES)))
    kinds = {"Conv", "ConvTranspose", "MatMul", "Gemm"}
    own = [number_of(n.name) for n in numbered.graph.node if n.op_type in kinds]
    assert own == list(range(len(MODULES)))
    # Operations on a layer's result belong to it; a sum belongs to the later of two layers.
    kinds_of = [{n.op_type for n in numbered.graph.node if number_of(n.name) == i} for i in own]
    assert "MaxPool" in kinds_of[0]
    assert kinds_of[1] >= {"Sigmoid", "Mul", "Add"}
    one, other = (OnnxNetwork(m).run(images(3)) for m in (model, numbered))
    for a, b in zip(one.values(), other.values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_belong_to_the_layer_that_reads_them() -> None:
    numbered, layers = with_layer_numbers(int8_model())
    assert [layer.module for layer in layers] == MODULES
    assert all(layer.is_quantized for layer in layers)
    stored = {tensor.name for tensor in numbered.graph.initializer}
    weights = [n for n in numbered.graph.node if n.input[0] in stored]
    assert len(weights) >= 4
    for node in weights:
        assert MODULES[number_of(node.name)] == re.split("[@/+]", node.name)[0]


def test_layers_in_float_are_known() -> None:
    recipe = Recipe(rules=(Rule(module="shared", quantize=False),))
    _, layers = with_layer_numbers(model_of(recipe))
    assert [layer.is_quantized for layer in layers] == [name != "shared" for name in MODULES]


def executed(names: str, *after: int) -> Executed:
    return Executed(operator="Op", names=names, after=after, ms=1.0, is_integer=False)


def test_what_an_engine_inserts_belongs_to_the_operator_before_it() -> None:
    given = [
        executed("Reorder"),  # There is no operator before it.
        executed("conv@layer0@ x", 0),
        executed("Reorder_2", 1),
        executed("sum@layer2@ conv@layer1@", 2),  # Two layers in one operator.
        executed("Reorder_4", 5),  # In the list before the operator that it reads.
        executed("conv@layer3@", 3),
        executed("Join", 2, 4),
    ]
    assert absorbed(given) == {}
    found = by_layer(given)
    places = {number: [given.index(e) for e in own] for number, own in found.items()}
    assert places == {0: [0, 1, 2], 2: [3], 3: [4, 5, 6]}


def test_layers_that_an_engine_computes_together() -> None:
    given = [
        executed("one@layer0@own@ relu@layer0@ two@layer1@own@"),
        executed("three@layer2@own@ sum@layer3@"),  # The sum belongs to the later layer.
    ]
    assert {number: len(own) for number, own in by_layer(given).items()} == {1: 1, 2: 1}
    assert absorbed(given) == {0: 1}


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_chains_of_layers_computed_together_end_at_the_last(order: tuple[int, ...]) -> None:
    """Whatever the order, and whichever engine joins which: 1 with 2, 2 with 4, 3 with 5."""
    names = [
        "@layer1@own@ @layer2@own@",
        "@layer4@own@ @layer2@own@",
        "@layer3@own@ @layer5@own@",
        "@layer0@own@",
    ]
    given = [executed(names[place]) for place in order]
    for split in range(len(given) + 1):
        assert absorbed(given[:split], given[split:]) == {1: 4, 2: 4, 3: 5}
