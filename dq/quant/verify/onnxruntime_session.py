"""Run an exported model in ONNX Runtime on the CPU, and count its layers."""

from __future__ import annotations

import collections
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from dq.error_text import error_text
from dq.quant.verify.engine import Engine, Network
from dq.whole_file import write_whole

log = logging.getLogger(__name__)

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul")
INTEGER_LAYERS = (
    "QLinearConv",
    "QGemm",
    "QLinearMatMul",
    "MatMulIntegerToFloat",
    "MatMulInteger",
    "ConvInteger",
    "DynamicQuantizeMatMul",
)
# Instructions that sum products of 8-bit integers in 32 bits.
EXACT_INSTRUCTIONS = ("vnni", "asimddp", "i8mm", "amx_int8")


def sums_exactly(cpu_info: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether this CPU sums 8-bit products without saturation at 16 bits.

    AVX2 and AVX-512 without VNNI add two products of uint8 and int8 in 16 bits, which saturates:
    2 * 255 * 127 does not fit.
    """
    try:
        text = cpu_info.read_text()
    except OSError:
        return False
    return any(word in text for word in EXACT_INSTRUCTIONS)


class OnnxNetwork(Network):
    """A model in ONNX Runtime on the CPU, called with images like the traced network.

    Args:
        model: The model.
        integers: Compute with integers. False computes the QDQ nodes literally, in float between
            them, without any optimization.
        exact: Prevent saturation of sums, although it is slower on CPUs without VNNI.
        threads: Number of threads of a call.
        keep: Names of values in the model to return in addition to its outputs.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        *,
        integers: bool = True,
        exact: bool = True,
        threads: int = 1,
        keep: Sequence[str] = (),
    ) -> None:
        if keep:
            model = with_outputs(model, keep)
        super().__init__(model)
        self.exact = not integers or sums_exactly() or exact
        try:
            slower = exact and integers and not sums_exactly()
            count = self._open(model, threads, integers=integers, slower=slower)
        except onnxruntime.capi.onnxruntime_pybind11_state.Fail:
            self.exact = False
            log.warning("ONNX Runtime has no exact sums for this model on this CPU (no VNNI)")
            count = self._open(model, threads, integers=integers, slower=False)
        self.num_integer = sum(count[kind] for kind in INTEGER_LAYERS)
        self.num_float = sum(count[kind] for kind in LAYERS)

    def _open(
        self, model: onnx.ModelProto, threads: int, *, integers: bool, slower: bool
    ) -> collections.Counter[str]:
        """Open the session; return the number of nodes of each operator that it runs."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        if slower:
            # Products of uint8 and uint8 instead of uint8 and int8. This rewrites the weights, and
            # fails if two layers share a weight.
            model = with_own_weights(model)
            options.add_session_config_entry("session.x64quantprecision", "1")
        if not integers:
            level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.graph_optimization_level = level
        with tempfile.TemporaryDirectory() as folder:
            self.session, nodes = open_session(model, options, Path(folder))
        return collections.Counter(node.op_type for node in nodes)

    def compute(self, arrays: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Return all outputs in order, for all inputs in order."""
        found: list[NDArray[np.float32]] = self.session.run(
            None, dict(zip(self.inputs, arrays, strict=True))
        )
        return found


ENGINE = Engine(
    title="ONNX Runtime",
    version=onnxruntime.__version__,
    network=lambda model, threads: OnnxNetwork(model, threads=threads),
)
# Computes exactly what the file says, in float between its QDQ nodes.
LITERALLY = Engine(
    title="ONNX Runtime without optimization",
    version=onnxruntime.__version__,
    network=lambda model, threads: OnnxNetwork(model, threads=threads, integers=False),
)


def open_session(
    model: onnx.ModelProto, options: onnxruntime.SessionOptions, folder: Path
) -> tuple[onnxruntime.InferenceSession, list[onnx.NodeProto]]:
    """Open a model on the CPU; return the session and the nodes that it executes.

    Args:
        model: The model.
        options: Its settings; the file of the optimized model is added to them.
        folder: An existing folder for that file.

    Raises:
        OSError: The file of the optimized model cannot be written, as on a full disk.
        Exception: ONNX Runtime cannot run the model; each kind of failure has its own class.
    """
    optimized, content = folder / "optimized.onnx", model.SerializeToString()
    options.optimized_model_filepath = str(optimized)
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception:
        # ONNX Runtime does not say why it could not write that file. Writing does.
        write_whole(optimized, content)
        raise
    return session, list(onnx.load(optimized).graph.node)


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy of the model that returns these values, float32, in addition to its outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    there = {output.name for output in copy.graph.output}
    for name in names:
        if name not in there:
            value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            copy.graph.output.append(value)
    return copy


def ending_at(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy of the model that returns these values, float32, and computes nothing else.

    Raises:
        ValueError: The model has no value of such a name.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    makers = {name: node for node in copy.graph.node for name in node.output}
    if missing := [name for name in names if name not in makers]:
        raise ValueError(f"the model has no value {missing[0]}; export it again")
    needed: set[str] = set()
    stack = list(names)
    while stack:
        name = stack.pop()
        if name not in needed:
            needed.add(name)
            stack += makers[name].input if name in makers else []
    kept = [
        onnx.NodeProto.FromString(node.SerializeToString())
        for node in copy.graph.node
        if needed & set(node.output)
    ]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    tensors = [t for t in model.graph.initializer if t.name in needed]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(tensors)
    infos = [info for info in model.graph.value_info if info.name in needed - set(names)]
    del copy.graph.value_info[:]
    copy.graph.value_info.extend(infos)
    del copy.graph.output[:]
    return with_outputs(copy, names)


def with_own_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which no two layers share the same integers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in copy.graph.initializer}
    weights = {
        node.output[0]: node
        for node in copy.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored
    }
    readers: collections.Counter[str] = collections.Counter()
    nodes = []
    for node in copy.graph.node:
        for index, name in enumerate(node.input):
            readers[name] += name in weights
            if readers[name] > 1:
                own = onnx.NodeProto.FromString(weights[name].SerializeToString())
                suffix = f"/reader{readers[name]}"
                # Integers and zero point. A zero point may be left out, or be computed by a node.
                for place in (0, 2):
                    tensor = stored.get(own.input[place]) if place < len(own.input) else None
                    if tensor is None:
                        continue
                    own.input[place] += suffix
                    if own.input[place] not in stored:  # Weights may share their zero point.
                        new = onnx.TensorProto.FromString(tensor.SerializeToString())
                        new.name = own.input[place]
                        stored[new.name] = new
                        copy.graph.initializer.append(new)
                # Nodes without a name are allowed; two with the same name are not.
                own.name = own.name and own.name + suffix
                own.output[0] += suffix
                node.input[index] = own.output[0]
                nodes.append(own)
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    return copy


def load_model(path: Path) -> onnx.ModelProto:
    """Return the model in a file.

    Raises:
        ValueError: The file does not exist, or is damaged.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; `launcher export` writes such a file")
    try:
        model: onnx.ModelProto = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:
        reason = error_text(error)[:160]
        raise ValueError(
            f"{path} is not an ONNX model, or damaged ({reason}); export it again"
        ) from error
    return model


def metadata_of(model: onnx.ModelProto) -> Mapping[str, str]:
    """Return the metadata that the export wrote."""
    return {entry.key: entry.value for entry in model.metadata_props}
