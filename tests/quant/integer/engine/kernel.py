"""One operator of ONNX Runtime on given integers or real numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

from dq.quant.integer.engine.quantizer import ExactQuantizer
from dq.quant.integer.modules import ExportSwitch, IntegerActivation
from dq.quant.numerics.spec import QuantSpec

MICROSOFT = "com.microsoft"
Array = NDArray[Any]


def kernel(
    kind: str,
    inputs: Mapping[str, Array | None],
    constants: Mapping[str, Any],
    *,
    domain: str = "",
    **attributes: Any,
) -> Array:
    """Return the operator's result.

    Args:
        kind: Of the operator.
        inputs: All inputs by name and in order; those in ``constants`` are None here.
        constants: Inputs that are constants of the model.
        domain: Of the operator.
        attributes: Of the operator.
    """
    given = {name: array for name, array in inputs.items() if array is not None}
    names = [name if name in given or name in constants else "" for name in inputs]
    node = helper.make_node(kind, names, ["result"], domain=domain, **attributes)
    values = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim
        )
        for name, array in given.items()
    ]
    first = next(iter(given.values()))
    result = helper.make_tensor_value_info(
        "result", helper.np_dtype_to_tensor_dtype(first.dtype), [None] * first.ndim
    )
    stored = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    graph = helper.make_graph([node], "kernel", values, [result], stored)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: Array = session.run(None, given)[0]
    return found


def quantizer(scale: float, zero_point: int) -> ExactQuantizer:
    """Return the quantizer of an unsigned byte."""
    integer = IntegerActivation(
        "it",
        torch.tensor(scale, dtype=torch.float32),
        torch.tensor(zero_point, dtype=torch.int32),
        QuantSpec(bits=8),
        ExportSwitch(),
    )
    return ExactQuantizer(integer)


def real(integers: Array, own: ExactQuantizer) -> Tensor:
    """Return the real values of a quantizer's bytes."""
    return (torch.from_numpy(integers.astype(np.float32)) - own.zero_point) * own.scale


def integers_of(values: Tensor, own: ExactQuantizer) -> Array:
    """Return the bytes of a quantizer's real values."""
    found: Array = (own.shifted(values) + own.zero_point).numpy().astype(np.uint8)
    return found


def parameters(own: ExactQuantizer) -> tuple[Array, Array]:
    """Return scale and zero point of a quantizer as an operator gets them."""
    return own.scale.numpy(), np.asarray(int(own.zero_point), np.uint8)


def quantizers(seed: int, num: int) -> list[ExactQuantizer]:
    """Return quantizers with random scales and zero points, the extreme ones among them."""
    generator = np.random.default_rng(seed)
    scales = generator.uniform(0.003, 0.1, num)
    shifts = generator.choice([0, 255, *generator.integers(1, 255, 6)], num)
    return [quantizer(float(a), int(b)) for a, b in zip(scales, shifts, strict=True)]
