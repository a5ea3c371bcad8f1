"""Measure the speed of OpenVINO on the CPU, with float32 for all layers that are not 8-bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import openvino
from numpy.typing import NDArray

from dq.quant.latency.engine import Executed
from dq.quant.verify.openvino_session import ENGINE, INTEGER_TYPES, LAYERS, reason_of, settings_for
from dq.quant.verify.signal_stack import kept_signal_stack


class OpenVino:
    """Opens models in OpenVINO; see `dq.quant.latency.engine.Engine`."""

    def open(self, model: onnx.ModelProto, *, threads: int) -> OpenVinoNetwork:
        """Return the model, ready to run on this number of threads.

        Raises:
            ValueError: OpenVINO cannot run it.
        """
        return OpenVinoNetwork(model.SerializeToString(), threads=threads)

    def profiled(self, model: onnx.ModelProto, *, threads: int) -> OpenVinoNetwork:
        """Return the model, ready to run with a timer for each operator; see `open`."""
        return OpenVinoNetwork(model.SerializeToString(), threads=threads, profile=True)

    def __str__(self) -> str:
        return str(ENGINE)


class OpenVinoNetwork:
    """A model compiled for the CPU; see `dq.quant.latency.engine.ProfiledNetwork`.

    Args:
        model: The bytes of an ONNX file, or the path of a file that OpenVINO reads.
        threads: Number of threads of a run.
        profile: Time the operators.
    """

    def __init__(self, model: bytes | str, *, threads: int, profile: bool = False) -> None:
        self._settings = {**settings_for(threads), "PERF_COUNT": profile}
        self._core = openvino.Core()
        try:
            self._network = self._core.read_model(model)
            shapes = [given.get_partial_shape() for given in self._network.inputs]
            self._is_free = [len(shape) > 0 and shape[0].is_dynamic for shape in shapes]
            self._compile(1)
        except RuntimeError as error:
            raise ValueError(f"OpenVINO cannot run it: {reason_of(error)[:200]}") from error
        kinds = [(_text(op, "layerType"), _text(op, "runtimePrecision")) for op in self._operators]
        layers = [type_ for kind, type_ in kinds if kind in LAYERS]
        self.num_integer = sum(type_ in INTEGER_TYPES for type_ in layers)
        self.num_float = len(layers) - self.num_integer

    def _compile(self, batch: int) -> None:
        """Compile for this batch size, because a known one is faster."""
        for given, is_free in zip(self._network.inputs, self._is_free, strict=True):
            if is_free:
                shape = given.get_partial_shape()
                shape[0] = batch
                self._network.reshape({given: shape})
        with kept_signal_stack():
            self.compiled = self._core.compile_model(self._network, "CPU", self._settings)
        self.request, self._batch = self.compiled.create_infer_request(), batch

    @property
    def _operators(self) -> list[Any]:
        return list(self.compiled.get_runtime_model().get_ordered_ops())

    def compute(self, arrays: Sequence[NDArray[Any]]) -> Sequence[NDArray[np.float32]]:
        """Return all outputs in order, for all inputs in order; compiles for a new batch size."""
        for array, is_free in zip(arrays, self._is_free, strict=True):
            if is_free and len(array) != self._batch:
                self._compile(len(array))
        with kept_signal_stack():
            found: Sequence[NDArray[np.float32]] = self.request.infer(list(arrays)).to_tuple()
        return found

    def executed(self) -> list[Executed]:
        """Return all operators with their mean times in the runs so far."""
        operators = self._operators
        places = {op.get_friendly_name(): place for place, op in enumerate(operators)}
        return [
            Executed(
                operator=_text(op, "layerType"),
                names=_text(op, "originalLayersNames"),
                after=tuple(
                    places[value.get_node().get_friendly_name()] for value in op.input_values()
                ),
                ms=_ms(_text(op, "execTimeMcs")),
                is_integer=_text(op, "layerType") in LAYERS
                and _text(op, "runtimePrecision") in INTEGER_TYPES,
            )
            for op in operators
        ]


def _text(operator: Any, key: str) -> str:
    info = operator.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""


def _ms(microseconds: str) -> float:
    return float(microseconds) / 1000 if microseconds.isdecimal() else 0.0


TIMED = OpenVino()
