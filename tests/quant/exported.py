"""A quantized net as an ONNX model with QDQ nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
from torch import Tensor, fx

from dq.quant.export.onnx_graph import checked, flatten, placeholder_model
from dq.quant.export.qdq import opset_needed, to_qdq_
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.integer.convert import integer_network
from dq.quant.integer.qparams import specs_of, widths_of


def exported(
    graph: QuantizedGraph, example: Tensor, change_: Callable[[fx.GraphModule], Any] | None = None
) -> onnx.ModelProto:
    """Export the graph for images of the example's size, after changing its integer network."""
    network = integer_network(graph)
    if change_ is not None:
        change_(network)
    names = [f"output.{i}" for i in range(len(flatten(network(example))[0]))]
    specs = specs_of(network)
    opset = opset_needed(widths_of(network)) or 18
    model = placeholder_model(network, example, opset=opset, output_names=names)
    to_qdq_(model, specs)
    return checked(model)


def tensor_of(model: onnx.ModelProto, site: str, part: str) -> onnx.TensorProto:
    """Return what a quantizer's DequantizeLinear reads: ``integers``, ``scale`` or ``zero_point``.

    Args:
        model: Exported.
        site: Name of the quantizer, of a weight for ``integers``.
        part: Which of the three.
    """
    (node,) = (node for node in model.graph.node if node.name == site)
    name = node.input[("integers", "scale", "zero_point").index(part)]
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    return tensor
