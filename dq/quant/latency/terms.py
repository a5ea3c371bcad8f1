"""The settings for timing models: threads, rounds, and inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dq.quant.latency.paired import FEWEST_ROUNDS

MOST_ROUNDS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The settings for timing models.

    Attributes:
        threads: Number of threads of a run.
        rounds: Maximum number of rounds; in each every model runs.
        fewest: Minimum number of rounds.
        limit_s: Seconds after which no further round starts.
        batch: Batch size, for inputs whose first dimension is free.
        size: Height and width in pixels, for images of a free size.
    """

    threads: int = 1
    rounds: int = MOST_ROUNDS
    fewest: int = FEWEST_ROUNDS
    limit_s: float = math.inf
    batch: int = 1
    size: tuple[int, int] | None = None

    def inputs_of(self, model: onnx.ModelProto) -> list[NDArray[Any]]:
        """Return example values for a model's inputs.

        Raises:
            ValueError: An input has no fixed size.
        """
        return example_inputs(model, batch=self.batch, size=self.size)


ALONE = Terms()
# For the end of an export: one or two seconds, or three rounds of a large model.
BRIEFLY = Terms(fewest=3, limit_s=1.5)


def example_inputs(
    model: onnx.ModelProto, *, batch: int = 1, size: tuple[int, int] | None = None
) -> list[NDArray[Any]]:
    """Return random values for every input of a model, in order and equal in each call.

    Args:
        model: Its inputs must have fixed sizes, except the batch and the image size.
        batch: Batch size, for inputs whose first dimension is free.
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
