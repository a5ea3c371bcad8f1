"""Example inputs have the sizes that a model was exported for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dq.quant.latency.terms import example_inputs


def model_of(*shapes: list[Any], kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    given = [helper.make_tensor_value_info(f"x{i}", kind, shape) for i, shape in enumerate(shapes)]
    out = helper.make_tensor_value_info("y", kind, None)
    nodes = [helper.make_node("Identity", ["x0"], ["y"])]
    return helper.make_model(helper.make_graph(nodes, "net", given, [out]))


def test_the_batch_may_be_free() -> None:
    model = model_of(["N", 3, 8, 6], [2, 5])
    one, two = example_inputs(model), example_inputs(model, batch=4)
    assert [array.shape for array in one] == [(1, 3, 8, 6), (2, 5)]
    assert [array.shape for array in two] == [(4, 3, 8, 6), (2, 5)]
    assert one[0].dtype == np.float32
    assert one[0].std() > 0.5
    np.testing.assert_array_equal(one[0], example_inputs(model)[0])


def test_a_size_is_asked_for_where_it_is_free_too() -> None:
    model = model_of(["N", 3, "H", "W"])
    with pytest.raises(ValueError, match="input x0 has no fixed size; give --size HEIGHT WIDTH"):
        example_inputs(model)
    assert example_inputs(model, size=(32, 16))[0].shape == (1, 3, 32, 16)
    fixed = model_of(["N", 3, 8, 6])
    assert example_inputs(fixed, size=(32, 16))[0].shape == (1, 3, 8, 6)


def test_other_types_and_stored_inputs() -> None:
    model = model_of([1, 3], [7], kind=TensorProto.INT64)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(7, np.int64), "x1"))
    (array,) = example_inputs(model)
    assert array.dtype == np.int64
