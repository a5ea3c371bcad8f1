"""Inputs to time a model on: random values of the sizes that it was exported for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray


def example_inputs(
    model: onnx.ModelProto, *, batch: int = 1, size: tuple[int, int] | None = None
) -> list[NDArray[Any]]:
    """Return values for every input of a model in order, the same at each call.

    Args:
        model: Its inputs have fixed sizes, but the first dimension, the batch, may be free.
        batch: Of inputs whose first dimension is free.
        size: Height and width of images ``(N, C, H, W)`` whose last two dimensions are free.

    Raises:
        ValueError: Another dimension is free.
    """
    generator = np.random.default_rng(0)
    stored = {tensor.name for tensor in model.graph.initializer}
    arrays = []
    for given in model.graph.input:
        if given.name in stored:
            continue
        kind = given.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else 0 for d in kind.shape.dim]
        if shape and shape[0] == 0:
            shape[0] = batch
        if len(shape) == 4 and size is not None:
            shape[2:] = [own or wanted for own, wanted in zip(shape[2:], size, strict=True)]
        if 0 in shape:
            raise ValueError(f"input {given.name} has no fixed size; give --size HEIGHT WIDTH")
        values = generator.standard_normal(shape)
        arrays.append(values.astype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)))
    return arrays
