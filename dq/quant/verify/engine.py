"""The interface of an engine: it opens an exported model and runs it on torch's tensors.

Each engine is one module with an `Engine` called ``ENGINE``, named in `dq.engines`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from dq.counted import counted

# Maximum number of characters of an engine's own message in ours.
_LONGEST_REASON = 200


class Network(ABC):
    """A model that an engine has opened, called with images like the traced network.

    Args:
        model: The model.

    Attributes:
        metadata: The model's metadata, by key.
        inputs: Names of the inputs.
        sizes: The required sizes of the inputs; a name means any size.
        names: Names of the outputs.
        num_integer: Number of layers computed in integers.
        num_float: Number of layers computed in float.
        exact: Whether integer sums cannot saturate.
    """

    num_integer: int
    num_float: int
    exact: bool

    def __init__(self, model: onnx.ModelProto) -> None:
        stored = {tensor.name for tensor in model.graph.initializer}
        given = [value for value in model.graph.input if value.name not in stored]
        self.metadata = {entry.key: entry.value for entry in model.metadata_props}
        self.inputs = [value.name for value in given]
        self.sizes = [_size(value) for value in given]
        self.names = [output.name for output in model.graph.output]

    @abstractmethod
    def compute(self, arrays: Sequence[NDArray[np.float32]]) -> Sequence[NDArray[np.float32]]:
        """Return all outputs in order, for all inputs in order."""

    @property
    def size(self) -> tuple[int | str, ...]:
        """The required size of the first input; a name means any size."""
        return self.sizes[0]

    def run(
        self, images: Tensor, given: Mapping[str, Tensor] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Return all outputs by name for images ``(N, C, H, W)``.

        Args:
            images: The first input.
            given: The other inputs by name, if the model has any.

        Raises:
            ValueError: The model was exported for another size or has other inputs, or the engine
                cannot compute it.
        """
        given = given or {}
        self._require(1 + len(given), [name for name in self.inputs[1:] if name not in given])
        tensors = {self.inputs[0]: images, **given}
        wanted = self.size
        fits = len(wanted) == images.dim() and all(
            isinstance(size, str) or size == given
            for size, given in zip(wanted, images.shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"the model was exported for inputs {_words(wanted)} and got"
                f" {_words(tuple(images.shape))}; export it again with"
                f" --size {images.shape[-2]} {images.shape[-1]}, or pad the test images to one size"
            )
        arrays = [tensors[name].detach().cpu().float().numpy() for name in self.inputs]
        return dict(zip(self.names, self.compute(arrays), strict=True))

    def _require(self, number: int, missing: Sequence[str]) -> None:
        """Raise ValueError if inputs are missing, or more are given than the model has."""
        if missing or number > len(self.inputs):
            raise ValueError(
                f"the model has {counted(len(self.inputs), 'input[s]')}"
                f" ({', '.join(self.inputs) or 'all its values are constants'}) and got {number}"
                f"{', without ' if missing else ''}{', '.join(missing)}; is it an export of this"
                " network? Export it again"
            )

    def tensors(self, images: Tensor, *others: Tensor) -> list[Tensor]:
        """Return all outputs in order, on the images' device; inputs are given in order.

        Raises:
            ValueError: As for `run`.
        """
        self._require(1 + len(others), self.inputs[1 + len(others) :])
        found = self.run(images, dict(zip(self.inputs[1:], others, strict=True)))
        return [torch.from_numpy(value).to(images.device) for value in found.values()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Runs exported models on the CPU.

    Attributes:
        title: Name of the engine.
        version: Version of its package.
        network: Opens a model on a number of threads; may raise any exception.
    """

    title: str
    version: str
    network: Callable[[onnx.ModelProto, int], Network]

    def open(self, model: onnx.ModelProto, *, threads: int = 1) -> Network:
        """Return the model, ready to run.

        Args:
            model: The model.
            threads: Number of threads of a call.

        Raises:
            ValueError: The engine cannot read the model, or cannot compute it.
        """
        try:
            return self.network(model, threads)
        except (MemoryError, OSError):
            raise
        except Exception as error:  # Each engine has its own exceptions.
            raise ValueError(
                f"{self} cannot run the model: {short(str(error))};"
                " evaluate it in another engine with --backend, or export it again"
            ) from error

    def __str__(self) -> str:
        return f"{self.title} {self.version}"


def short(text: str) -> str:
    """Return an engine's message on one line, shortened if it is long."""
    return " ".join(text.split())[:_LONGEST_REASON]


def _size(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims)


def _words(shape: Sequence[int | str]) -> str:
    return "x".join(str(size) for size in shape[1:])
