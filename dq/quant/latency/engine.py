"""The interface of an engine whose speed can be measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """One operator that an engine runs; it may compute several nodes of the model.

    Attributes:
        operator: Its type in the engine.
        names: Names of the model's nodes and values that it computes, in one text.
        after: Indices of the operators whose results it reads.
        ms: Median time in one run of the network, in milliseconds.
        is_integer: Whether it is a convolution, transposed convolution or matrix product of
            integers.
    """

    operator: str
    names: str
    after: tuple[int, ...]
    ms: float
    is_integer: bool


class Network(Protocol):
    """A model that an engine has opened.

    Attributes:
        num_integer: Number of layers (convolutions, transposed convolutions, matrix products) that
            run in integers.
        num_float: Number of layers that run in float.
    """

    num_integer: int
    num_float: int

    def compute(self, arrays: Sequence[NDArray[Any]]) -> Sequence[NDArray[np.float32]]:
        """Return all outputs in order, for all inputs in order."""


class ProfiledNetwork(Network, Protocol):
    """A model whose operators are timed while it runs."""

    def executed(self) -> list[Executed]:
        """Return all operators with their times in the runs so far, and end the measurement."""


class Engine(Protocol):
    """A runtime on the CPU; ``str`` of it is its name and version."""

    def open(self, model: onnx.ModelProto, *, threads: int) -> Network:
        """Return the model, ready to run on this number of threads.

        Raises:
            ValueError: The engine cannot run it.
        """

    def profiled(self, model: onnx.ModelProto, *, threads: int) -> ProfiledNetwork:
        """Return the model, ready to run with a timer for each operator.

        Raises:
            ValueError: The engine cannot run it, or cannot time its operators.
        """
