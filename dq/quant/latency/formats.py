"""Read from a QDQ model whether it is quantized, and the bit widths of its integers."""

from __future__ import annotations

import re
from collections import Counter

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from dq.quant.numerics.spec import name_of

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
# Operators on integers, for which the float twin has no replacement.
_INTEGER_OPERATORS = re.compile(r"QLinear|QGemm|Integer|DynamicQuantize|QAttention")


def is_quantized(model: ModelProto) -> bool:
    """Return whether a model has layers that an engine may run in integers."""
    return any(node.op_type == DEQUANTIZE for node in model.graph.node) or bool(
        integer_operators(model)
    )


def widths_of(model: ModelProto) -> str:
    """Return the name of the most frequent widths of weights and activations: int8, W4A8."""
    stored = constants(model.graph)
    weights: Counter[int] = Counter()
    activations: Counter[int] = Counter()
    for node in model.graph.node:
        if node.op_type == DEQUANTIZE and node.input[0] in stored:
            weights[_bits(stored[node.input[0]])] += stored[node.input[0]].dims != []
        elif node.op_type == QUANTIZE and len(node.input) > 2 and node.input[2] in stored:
            activations[_bits(stored[node.input[2]])] += 1
    most = (own.most_common(1) for own in (weights, activations))
    return name_of(*(found[0][0] if found else 8 for found in most))


def site_of(node: NodeProto) -> str:
    """Return the name of the quantizer of a DequantizeLinear node written by `dq.quant.export`."""
    # In files of earlier versions the node's name ends with its kind.
    return node.name.removesuffix("/dequantize").partition("#")[0]


def integer_operators(model: ModelProto) -> list[str]:
    """Return the types of a model's nodes that are operators on integers, such as QLinearConv."""
    return [n.op_type for n in model.graph.node if _INTEGER_OPERATORS.search(n.op_type)]


def constants(graph: GraphProto) -> dict[str, TensorProto]:
    """Return the stored tensors of a graph by name, including those of Constant nodes."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = attribute.t
    return found


def _bits(tensor: TensorProto) -> int:
    name = TensorProto.DataType.Name(tensor.data_type)
    digits = re.sub(r"\D", "", name)
    return int(digits) if "INT" in name and digits else 8
