"""The float twin has the same layers and weights without quantization, for files of any tool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from dq.quant.latency.float_twin import dequantized, float_twin
from dq.quant.latency.formats import is_quantized, widths_of
from dq.quant.numerics.spec import QuantSpec
from dq.quant.recipes.presets import preset
from dq.quant.recipes.recipe import Recipe
from dq.quant.verify.onnxruntime_session import OnnxNetwork
from tests.quant.latency.models import graph_of, images, model_of

pytestmark = pytest.mark.cpu

SIX = Recipe(activation=QuantSpec(bits=6), weight=QuantSpec(bits=6, signed=True, symmetric=True))
RECIPES = {
    "int8": preset("int8"),
    "W4A8": preset("w4a8"),
    "W8A16": preset("w8a16"),
    "six bits, with a Clip before each rounding": SIX,
    "no zero points": preset("tensorrt"),
}


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("name", RECIPES)
def test_twin_is_the_network_in_float(name: str) -> None:
    model = model_of(RECIPES[name])
    twin = float_twin(model)
    onnx.checker.check_model(twin, full_check=True)
    assert is_quantized(model)
    assert not is_quantized(twin)
    assert not set(kinds(twin)) & {"QuantizeLinear", "DequantizeLinear", "Clip"}
    gone = ("QuantizeLinear", "DequantizeLinear", "Clip")
    kept = [node.name for node in model.graph.node if node.op_type not in gone]
    assert [node.name for node in twin.graph.node if node.op_type != "Identity"] == kept
    wanted = OnnxNetwork(twin, integers=False).tensors(images(5))
    graph = graph_of(RECIPES[name])
    with torch.no_grad():
        for quantizer in graph.activations().values():
            quantizer.register_forward_hook(lambda _, given, __: given[0])
        found = graph(images(5))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["int8", "W4A8", "W8A16"])
def test_widths_are_named(name: str) -> None:
    assert widths_of(model_of(RECIPES[name])) == name


def small(nodes: Sequence[Any], tensors: dict[str, Any], *, out: int = TensorProto.FLOAT) -> Any:
    """Return a model x (1, 2, 4, 4) -> y of these nodes."""
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4, 4])
    result = helper.make_tensor_value_info("y", out, ["n", "c", "h", "w"])
    stored = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "net", [given], [result], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


SCALE, ZERO = np.float32(0.02), np.uint8(7)
WEIGHT = np.arange(-4, 4, dtype=np.float32).reshape(4, 2, 1, 1)
X = np.random.default_rng(0).standard_normal((1, 2, 4, 4)).astype(np.float32)
STORED = {"s": SCALE, "z": ZERO, "w": WEIGHT, "ws": np.float32(0.5), "wz": np.int8(0)}
PAIR = [
    helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
    helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
]


def result_of(model: Any) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    found: np.ndarray = ReferenceEvaluator(model).run(None, {"x": X})[0]
    return found


def convolved() -> np.ndarray:
    return np.einsum("oc,nchw->nohw", WEIGHT[:, :, 0, 0], X)


def test_weights_that_the_file_keeps_in_float() -> None:
    """NNCF and others round a float weight in the graph."""
    nodes = [
        *PAIR,
        helper.make_node("QuantizeLinear", ["w", "ws", "wz"], ["wq"]),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["y"]),
    ]
    twin = float_twin(small(nodes, STORED))
    assert kinds(twin) == ["Conv"]
    assert [tensor.name for tensor in twin.graph.initializer] == ["w"]
    np.testing.assert_allclose(result_of(twin), convolved(), rtol=1e-5, atol=1e-5)


def test_weights_in_a_constant_node() -> None:
    integers = numpy_helper.from_array((WEIGHT / 0.5).astype(np.int8))
    nodes = [
        *PAIR,
        helper.make_node("Constant", [], ["wq"], value=integers),
        helper.make_node("DequantizeLinear", ["wq", "ws"], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["y"]),
    ]
    twin = float_twin(small(nodes, STORED))
    np.testing.assert_allclose(result_of(twin), convolved(), rtol=1e-5, atol=1e-5)


def test_operators_between_rounding_and_its_end_become_float() -> None:
    nodes = [
        PAIR[0],
        helper.make_node("MaxPool", ["xq"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Transpose", ["pooled"], ["turned"], perm=[0, 1, 3, 2]),
        helper.make_node("DequantizeLinear", ["turned", "s", "z"], ["y"]),
    ]
    wanted = X.reshape(1, 2, 2, 2, 2, 2).max((3, 5)).transpose(0, 1, 3, 2)
    np.testing.assert_array_equal(result_of(float_twin(small(nodes, STORED))), wanted)


def test_outputs_of_integers_become_float() -> None:
    model = small([helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])], STORED, out=2)
    np.testing.assert_array_equal(result_of(float_twin(model)), X)


def test_integers_that_are_no_rounded_numbers_stay() -> None:
    """For example labels: integers that are computed from quantized values stay integers."""
    kind = TensorProto.INT64
    nodes = [*PAIR, helper.make_node("ArgMax", ["xd"], ["y"], axis=1)]
    places = [PAIR[0], helper.make_node("ArgMax", ["xq"], ["y"], axis=1)]
    for found in (nodes, places):
        twin = float_twin(small(found, STORED, out=kind))
        assert twin.graph.output[0].type.tensor_type.elem_type == kind
        np.testing.assert_array_equal(result_of(twin), X.argmax(1, keepdims=True))


def test_integers_from_outside_are_dequantized_still() -> None:
    model = small([helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"])], STORED)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    assert kinds(float_twin(model)) == ["DequantizeLinear"]


def test_graphs_inside_nodes_read_the_real_values() -> None:
    inner = helper.make_graph(
        [helper.make_node("Abs", ["xd"], ["inside"])],
        "then",
        [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, ["n", "c", "h", "w"])],
    )
    yes = numpy_helper.from_array(np.array(True), "yes")
    nodes = [*PAIR, helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)]
    model = small(nodes, STORED)
    model.graph.initializer.append(yes)
    np.testing.assert_array_equal(result_of(float_twin(model)), np.abs(X))


def test_own_clip_stays() -> None:
    """For example a ReLU6 before a quantizer does not belong to the quantizer."""
    tensors = {**STORED, "low": np.float32(0), "high": np.float32(1)}
    nodes = [
        helper.make_node("Clip", ["x", "low", "high"], ["c"], name="relu6"),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    np.testing.assert_array_equal(result_of(float_twin(small(nodes, tensors))), X.clip(0, 1))


def test_a_float_model_is_its_own_twin() -> None:
    model = small([helper.make_node("Conv", ["x", "w"], ["y"])], {"w": WEIGHT})
    assert not is_quantized(model)
    assert float_twin(model) == model


def test_layers_of_integers_have_no_twin() -> None:
    nodes = [helper.make_node("QLinearConv", list("abcdefgh"), ["y"])]
    model = small(nodes, {})
    assert is_quantized(model)
    with pytest.raises(ValueError, match=r"QLinearConv nodes.*QDQ"):
        float_twin(model)


CASES = {
    "one scale": ((4, 6), (), 1, 0),
    "one scale in a list": ((4, 6), (1,), 1, 0),
    "each row": ((4, 6), (4,), 0, 0),
    "each column": ((4, 6), (6,), -1, 0),
    "blocks of rows": ((4, 6), (2, 6), 0, 2),
    "blocks of columns": ((4, 6), (4, 2), 1, 3),
}


@pytest.mark.parametrize("zero_point", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_dequantized_is_what_onnx_defines(case: str, zero_point: bool) -> None:
    shape, of_scale, axis, block = CASES[case]
    generator = np.random.default_rng(0)
    arrays = [generator.integers(-128, 127, shape).astype(np.int8)]
    arrays.append(np.asarray(generator.random(of_scale), np.float32) + np.float32(0.1))
    if zero_point:
        arrays.append(np.asarray(generator.integers(-9, 9, of_scale), np.int8))
    names = ["x", "s", "z"][: len(arrays)]
    node = helper.make_node("DequantizeLinear", names, ["y"], axis=axis, block_size=block)
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in zip(names, arrays, strict=True)
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    graph = helper.make_graph([node], "it", infos, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    if of_scale == (1,):
        model.graph.node[0].ClearField("attribute")
        arrays[1:] = [array.reshape(()) for array in arrays[1:]]
    wanted = ReferenceEvaluator(model).run(None, dict(zip(names, arrays, strict=True)))[0]
    arrays[1:] = [array.reshape(of_scale) for array in arrays[1:]]
    found = dequantized(*arrays, axis=axis, block=block)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
