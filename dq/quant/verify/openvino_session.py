"""Run an exported model in OpenVINO on the CPU, with float32 for all layers that are not 8-bit."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
import openvino
from numpy.typing import NDArray

from dq.quant.verify.engine import Engine, Network
from dq.quant.verify.onnxruntime_session import sums_exactly
from dq.quant.verify.signal_stack import kept_signal_stack

log = logging.getLogger(__name__)

LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
# OpenVINO's names of the precision of a layer that sums products of integers.
INTEGER_TYPES = ("u8", "i8")
# The message about an unknown operator lists every operator after it, and then a summary.
SUMMARY = "Summary:"


class OpenVinoNetwork(Network):
    """A model in OpenVINO on the CPU.

    Args:
        model: The model.
        threads: Number of threads of a call.
    """

    def __init__(self, model: onnx.ModelProto, threads: int) -> None:
        super().__init__(model)
        self._core = openvino.Core()
        self._settings = settings_for(threads)
        try:
            self._model = self._core.read_model(_with_copied_outputs(model).SerializeToString())
            self._requests: dict[int | None, openvino.InferRequest] = {1: self._compiled(1)}
        except RuntimeError as error:
            raise ValueError(reason_of(error)) from error
        count = Counter(
            (info["layerType"].astype(str), info["runtimePrecision"].astype(str))
            for info in (
                node.get_rt_info()
                for node in self.request(1).get_compiled_model().get_runtime_model().get_ops()
            )
        )
        layers = {key: num for key, num in count.items() if key[0] in LAYERS}
        self.num_integer = sum(num for (_, kind), num in layers.items() if kind in INTEGER_TYPES)
        self.num_float = sum(layers.values()) - self.num_integer
        self.exact = not self.num_integer or sums_exactly()
        if not self.exact:
            log.warning("OpenVINO has no exact sums on this CPU (no VNNI)")

    def compute(self, arrays: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Return all outputs in order, for all inputs in order."""
        if not len(arrays[0]):
            # OpenVINO does not run an empty batch, but returns results of the previous one.
            one = [np.zeros((len(own) or 1, *own.shape[1:]), np.float32) for own in arrays]
            return [found[:0] for found in self.compute(one)]
        request = self.request(len(arrays[0]))
        with kept_signal_stack():
            return list(request.infer(list(arrays)).to_tuple())

    def request(self, batch: int) -> openvino.InferRequest:
        """Return the compiled model for a batch of this size."""
        key = 1 if batch == 1 or not self._is_batch_free else None
        if key not in self._requests:
            self._requests[key] = self._compiled(key)
        return self._requests[key]

    @property
    def _is_batch_free(self) -> bool:
        return isinstance(self.size[0], str)

    def _compiled(self, batch: int | None) -> openvino.InferRequest:
        """Return the model compiled for a batch size; None allows any, which is a fifth slower."""
        model = self._model.clone()
        if batch is not None and self._is_batch_free:
            free = self.size[0]
            model.reshape(
                {
                    name: [batch if s == free else -1 if isinstance(s, str) else s for s in size]
                    for name, size in zip(self.inputs, self.sizes, strict=True)
                }
            )
        with kept_signal_stack():
            return self._core.compile_model(model, "CPU", self._settings).create_infer_request()


def _with_copied_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of the model that returns copies of its outputs.

    OpenVINO removes all quantization to 16 bits. It fails if this removes the node of an output and
    the output's name cannot be given to another node.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for output in copy.graph.output:
        name = f"{output.name}/returned"
        copy.graph.node.append(onnx.helper.make_node("Identity", [output.name], [name]))
        output.name = name
    return copy


def settings_for(threads: int) -> dict[str, str | int | bool]:
    """Return OpenVINO's settings for a number of threads, with float32 and 8-bit integers only."""
    return {
        # Otherwise everything but 8-bit integers is computed in bf16 or fp16 if the CPU has it.
        "INFERENCE_PRECISION_HINT": "f32",
        # Otherwise linear layers with integer weights round their float inputs to 8 bits.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # Otherwise each process pins its threads to the first cores, so that ranks share them.
        "ENABLE_CPU_PINNING": False,
    }


def reason_of(error: RuntimeError) -> str:
    """Return OpenVINO's error message on one line, without places in its source code."""
    text = str(error)
    if SUMMARY in text:
        return text.partition(SUMMARY)[2].strip().splitlines()[0].removeprefix("-- ")
    lines = text.strip().splitlines()
    return " ".join(line for line in lines if not line.startswith(("Exception from", "Check ")))


ENGINE = Engine(
    title="OpenVINO",
    version=openvino.__version__.partition("-")[0],
    network=OpenVinoNetwork,
)
