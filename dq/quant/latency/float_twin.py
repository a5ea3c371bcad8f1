"""The float twin of a quantized ONNX model: the same layers and weights without quantization."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from dq.quant.export.node_names import LIMITS
from dq.quant.latency.formats import DEQUANTIZE, QUANTIZE, constants, integer_operators

_INTEGERS = (
    *(TensorProto.INT4, TensorProto.INT8, TensorProto.INT16),
    *(TensorProto.UINT4, TensorProto.UINT8, TensorProto.UINT16),
)


def float_twin(model: ModelProto, only: Collection[str] | None = None) -> ModelProto:
    """Return a copy without QuantizeLinear and DequantizeLinear, its weights dequantized.

    Nodes keep their names and order. A Clip that `dq.quant.export` writes before a QuantizeLinear
    is removed too.

    Args:
        model: With QDQ nodes, of any tool; without any it is copied unchanged.
        only: Names of the nodes to remove, both nodes of each pair; None for all.

    Raises:
        ValueError: The model has operators on integers, such as QLinearConv.
    """
    if operators := integer_operators(model):
        raise ValueError(
            f"it has {operators[0]} nodes, whose layers have no float form; give a model with"
            " QuantizeLinear and DequantizeLinear (QDQ)"
        )
    copy = ModelProto()
    copy.CopyFrom(model)
    _Twin(copy.graph, only).rewrite()
    return copy


def renamed_inputs_(nodes: Sequence[NodeProto], names: Mapping[str, str]) -> None:
    """Rename the inputs of nodes, and of nodes in their subgraphs, in place."""
    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                renamed_inputs_(inner.node, names)
                for output in inner.output:
                    output.name = names.get(output.name, output.name)


class _Twin:
    """Rewrites one graph.

    Attributes:
        instead: The value to read instead of a removed one.
        was_rounded: Values that were integers in the model and are real numbers in the twin.
    """

    def __init__(self, graph: GraphProto, only: Collection[str] | None) -> None:
        self.graph, self.only = graph, only
        self.stored = constants(graph)
        self.readers = _readers(graph)
        self.instead: dict[str, str] = {}
        self.was_rounded: set[str] = set()
        self.added: dict[str, TensorProto] = {}

    def rewrite(self) -> None:
        """Change the graph in place."""
        kept = []
        for node in self.graph.node:
            if self.was_rounded & set(node.input):
                # For example pooling of integers. The result of a DequantizeLinear is real already.
                self.was_rounded.update(node.output if node.op_type != DEQUANTIZE else ())
            if not self._is_removed(node):
                renamed_inputs_([node], self.instead)
                kept.append(NodeProto.FromString(node.SerializeToString()))
        for output in self.graph.output:
            kind = output.type.tensor_type
            if output.name in self.was_rounded and kind.elem_type in _INTEGERS:
                kind.elem_type = TensorProto.FLOAT
            if output.name in self.instead:
                source = self.instead[output.name]
                kept.append(onnx.helper.make_node("Identity", [source], [output.name]))
        read = {output.name for output in self.graph.output}
        _collect(kept, read)
        tensors = [t for t in (*self.graph.initializer, *self.added.values()) if t.name in read]
        tensors = [TensorProto.FromString(t.SerializeToString()) for t in tensors]
        for field in ("node", "initializer", "value_info", "quantization_annotation"):
            self.graph.ClearField(field)
        self.graph.node.extend(kept)
        self.graph.initializer.extend(tensors)

    def _is_removed(self, node: NodeProto) -> bool:
        """Return whether a node is removed; if so, note the value to read instead of its result."""
        source = node.input[0] if node.input else ""
        pair = self._rounding_after(node) if node.op_type == "Clip" else node.name
        if self.only is not None and pair not in self.only:
            return False
        if node.op_type == QUANTIZE:
            self.was_rounded.add(node.output[0])
        elif node.op_type == DEQUANTIZE and source not in self.was_rounded:
            if source not in self.stored:  # The model's own input has integers.
                return False
            self.instead[node.output[0]] = self._dequantized(node)
            return True
        elif node.op_type != DEQUANTIZE and self._rounding_after(node) is None:
            return False
        self.instead[node.output[0]] = self.instead.get(source, source)
        return True

    def _rounding_after(self, node: NodeProto) -> str | None:
        """Return the name of the QuantizeLinear whose integers a Clip limits, or None."""
        if node.op_type != "Clip" or not node.name.endswith(LIMITS):
            return None
        after = self.readers.get(node.output[0], [])
        return after[0] if len(after) == 1 else None

    def _dequantized(self, node: NodeProto) -> str:
        name = f"{node.input[0]}/float"
        if name not in self.added:
            arrays = [onnx.numpy_helper.to_array(self.stored[n]) for n in node.input if n]
            attributes = {a.name: a.i for a in node.attribute}
            real = dequantized(
                *arrays, axis=attributes.get("axis", 1), block=attributes.get("block_size", 0)
            )
            self.added[name] = onnx.numpy_helper.from_array(real, name)
        return name


def dequantized(
    integers: NDArray[np.generic],
    scale: NDArray[np.generic],
    zero_point: NDArray[np.generic] | None = None,
    *,
    axis: int,
    block: int = 0,
) -> NDArray[np.floating]:
    """Return the real values of integers, as ONNX's DequantizeLinear defines them.

    Args:
        integers: Any shape.
        scale: ``()``, one for each index of the axis, or one for each block along it.
        zero_point: Same shape as the scale; None for 0.
        axis: The axis of the scales; ignored for a single scale.
        block: Number of values along the axis that share a scale; 0 for one scale per index.

    Returns:
        Shape of ``integers``, dtype of ``scale``.
    """
    shift = np.zeros_like(scale) if zero_point is None else zero_point.astype(np.float32)
    factor = scale.astype(np.float32)
    if block:
        length = integers.shape[axis]
        factor, shift = (np.repeat(own, block, axis).take(range(length), axis)
                         for own in (factor, shift))  # fmt: skip
    elif scale.size > 1:
        shape = [1] * integers.ndim
        shape[axis] = -1
        factor, shift = factor.reshape(shape), shift.reshape(shape)
    else:
        factor, shift = factor.reshape(()), shift.reshape(())
    found: NDArray[np.floating] = (integers.astype(np.float32) - shift) * factor
    return found.astype(scale.dtype)


def _readers(graph: GraphProto) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node.name)
    for output in graph.output:
        found.setdefault(output.name, []).append("")
    return found


def _collect(nodes: Sequence[NodeProto], names: set[str]) -> None:
    """Add the names of all values that nodes and their subgraphs read."""
    for node in nodes:
        names.update(node.input)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _collect(inner.node, names)
                names.update(output.name for output in inner.output)
