"""Averages over windows are exported so that ONNX Runtime computes what torch computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from dq.quant.export.averages import fit_averages_

OPSET = 19


def exported(pool: torch.nn.AvgPool2d, height: int, width: int) -> onnx.ModelProto:
    """Return the pool as torch.onnx writes it, and then fitted."""
    assert isinstance(pool.kernel_size, int)
    assert isinstance(pool.stride, int)
    assert isinstance(pool.padding, int)
    node = helper.make_node(
        "AveragePool",
        ["x"],
        ["y"],
        name="pool",
        kernel_shape=[pool.kernel_size] * 2,
        strides=[pool.stride] * 2,
        pads=[pool.padding] * 4,
        ceil_mode=int(pool.ceil_mode),
        count_include_pad=int(pool.count_include_pad),
    )
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, height, width])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "graph", [given], [result])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    model = ir.from_proto(proto)
    fit_averages_(model)
    return ir.to_proto(model)


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("size", [(4, 4), (5, 4), (6, 7), (7, 9)])
@pytest.mark.parametrize(
    ("window", "stride", "padding"), [(1, 2, 0), (2, 3, 0), (2, 3, 1), (3, 2, 1)]
)
def test_the_last_window_may_end_inside_or_outside_of_the_image(
    window: int, stride: int, padding: int, size: tuple[int, int], counts: bool
) -> None:
    pool = torch.nn.AvgPool2d(window, stride, padding, ceil_mode=True, count_include_pad=counts)
    x = torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(0))
    model = exported(pool, *size).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found, pool(x).numpy(), rtol=1e-6)
