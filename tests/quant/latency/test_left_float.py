"""A file with some layers in float equals the export of a calibration with this rule."""

from __future__ import annotations

import json

import onnx
import pytest

from dq.quant.latency.left_float import is_ours, with_layers_in_float
from dq.quant.recipes.recipe import Recipe, Rule
from dq.quant.verify.onnxruntime_session import OnnxNetwork
from tests.quant.latency.models import images, model_of

pytestmark = pytest.mark.cpu

NAMES = {"stem": "stem+norm", "depthwise": "depthwise", "up": "up"}


def roundings(model: onnx.ModelProto) -> list[str]:
    """Return the quantized tensors, each named by the operator that computes it."""
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    stored = {tensor.name for tensor in model.graph.initializer}
    return [
        f"{makers.get(node.input[0], 'input')} {node.op_type}"
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in stored
    ]


@pytest.mark.parametrize("target", ["int8", pytest.param("onnxruntime", marks=pytest.mark.slow)])
@pytest.mark.parametrize("modules", [("depthwise",), ("stem", "up")])
def test_rounds_what_a_calibration_with_the_rule_rounds(
    target: str, modules: tuple[str, ...]
) -> None:
    recipe = Recipe().for_target(target)
    rules = tuple(Rule(module=name, quantize=False) for name in modules)
    wanted = model_of(Recipe(rules=rules).for_target(target))
    found = with_layers_in_float(model_of(recipe), [NAMES[name] for name in modules])
    onnx.checker.check_model(found, full_check=True)
    assert roundings(found) == roundings(wanted)
    one, other = (OnnxNetwork(model) for model in (found, wanted))
    assert (one.num_integer, one.num_float) == (other.num_integer, other.num_float)
    for a, b in zip(one.tensors(images(5)), other.tensors(images(5)), strict=True):
        assert (a - b).abs().max() < 0.1 * b.abs().max()


def test_a_target_that_is_registered_nowhere_here_is_what_the_file_says() -> None:
    known = model_of(Recipe().for_target("onnxruntime"))
    model = model_of(Recipe().for_target("onnxruntime"))
    content = {entry.key: entry for entry in model.metadata_props}
    recipe = json.loads(content["recipe"].value)
    content["recipe"].value = json.dumps({**recipe, "target": "elsewhere"})
    with pytest.raises(ValueError, match="target 'elsewhere' does not exist"):
        with_layers_in_float(model, [NAMES["up"]])
    model.metadata_props.add(key="results", value="all")
    found = with_layers_in_float(model, [NAMES["up"]])
    assert roundings(found) == roundings(with_layers_in_float(known, [NAMES["up"]]))


def test_other_tools_files_are_known() -> None:
    model = model_of(Recipe())
    assert is_ours(model)
    del model.metadata_props[:]
    assert not is_ours(model)
