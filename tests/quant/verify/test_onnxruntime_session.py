"""Weights that layers share are copied, however the file describes their integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from dq.quant.verify.onnxruntime_session import with_own_weights

pytestmark = pytest.mark.cpu
FLOAT = onnx.TensorProto.FLOAT


def shared_weights(zero_points: str) -> onnx.ModelProto:
    """Return a model with two weights, each of which two layers read.

    Args:
        zero_points: ``none`` leaves them out, ``empty`` names nothing, ``own`` stores one for each
            weight, ``one`` one for both, ``computed`` takes them from a node.
    """
    generator = np.random.default_rng(0)
    stored = {"scale": np.float32(0.02), "zero": np.int8(3)}
    nodes = [helper.make_node("Identity", ["zero"], ["zero/computed"])]
    value = "x"
    for name in ("a", "b"):
        stored[name] = generator.integers(-128, 128, (4, 4)).astype(np.int8)
        stored[f"{name}/zero"] = np.int8(5)
        third = {"none": [], "empty": [""], "own": [f"{name}/zero"], "one": ["zero"],
                 "computed": ["zero/computed"]}[zero_points]  # fmt: skip
        real = f"{name}/real"
        nodes.append(helper.make_node("DequantizeLinear", [name, "scale", *third], [real]))
        for number in range(2):
            result = f"{name}/{number}"
            nodes.append(helper.make_node("MatMul", [value, real], [result]))
            value = result
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", FLOAT, [1, 4])],
        [helper.make_tensor_value_info(value, FLOAT, [1, 4])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    return model


def result_of(model: onnx.ModelProto) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": np.arange(4, dtype=np.float32)[None]})[0]


@pytest.mark.parametrize("zero_points", ["none", "empty", "own", "one", "computed"])
def test_no_two_layers_share_integers_afterwards(zero_points: str) -> None:
    model = shared_weights(zero_points)
    own = with_own_weights(model)
    onnx.checker.check_model(own)
    nodes = [node for node in own.graph.node if node.op_type == "DequantizeLinear"]
    assert len({node.input[0] for node in nodes}) == len(nodes) == 4
    readers = [node.input[1] for node in own.graph.node if node.op_type == "MatMul"]
    assert len(set(readers)) == len(readers) == 4
    names = [tensor.name for tensor in own.graph.initializer]
    assert len(set(names)) == len(names)
    np.testing.assert_array_equal(result_of(own), result_of(model))
