"""What an engine must do so that its speed can be measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """One operator that an engine runs, which may stand for several nodes of the model.

    Attributes:
        operator: Its type in the engine.
        names: Names of nodes and results of the model that it came from, in one text.
        after: Places in the list of the operators whose results it reads.
        ms: Median milliseconds in one run of the network.
        is_integer: It is a convolution, transposed convolution or matrix product of integers.
    """

    operator: str
    names: str
    after: tuple[int, ...]
    ms: float
    is_integer: bool


class Network(Protocol):
    """A model that an engine has opened.

    Attributes:
        num_integer: Layers (convolutions, transposed ones, matrix products) run in integers.
        num_float: Layers run in float.
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
    """A runtime on the CPU; its text is its name and version."""

    def open(self, model: onnx.ModelProto, *, threads: int) -> Network:
        """Return the model, ready to run on so many threads.

        Raises:
            ValueError: The engine cannot run it.
        """

    def profiled(self, model: onnx.ModelProto, *, threads: int) -> ProfiledNetwork:
        """Return the model, ready to run while its operators are timed.

        Raises:
            ValueError: The engine cannot run it, or cannot time its operators.
        """
