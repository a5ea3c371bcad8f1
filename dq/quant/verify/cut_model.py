"""Cut an exported model at its quantized activations, to give each layer a chosen input.

If two models are compared end to end, one value that is rounded the other way at a tie changes all
later values. After some layers this looks the same as an error. In the cut model, the layers after
a quantized tensor read a model input instead, so no difference reaches the next layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import Tensor

from dq.quant.verify.engine import Network
from dq.quant.verify.onnxruntime_session import with_outputs

# The suffix of a cut's input, and of a node's name in files of earlier versions.
GIVEN, DEQUANTIZE = "/given", "/dequantize"


class CutNetwork:
    """A QDQ model in an engine that is cut at its activation quantizers.

    Args:
        model: As written by `dq.quant.export.qdq`.
        sites: Names of the activation quantizers to cut at; names not in the model are ignored.
        opened: Opens the cut model.

    Attributes:
        network: The cut model.
        values: Name of the model's value for each quantizer that was cut at.
        outputs: Names of the model's outputs.
        layers: Names of the quantized weights that compute each value, back to the next cuts.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        sites: Collection[str],
        opened: Callable[[onnx.ModelProto], Network],
    ) -> None:
        self.outputs = [output.name for output in model.graph.output]
        self.values = rounded_values(model, sites)
        cut = cut_model(model, self.values)
        self.layers = _layers_of(cut, [*self.values.values(), *self.outputs])
        self.network = opened(with_outputs(cut, list(self.values.values())))
        self._inputs = {given.name for given in cut.graph.input}

    def run(self, images: Tensor, given: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
        """Return the values at all cuts, and the outputs, by their names in the model.

        Args:
            images: ``(N, C, H, W)``.
            given: The values to read at each cut, by the quantizer's name.
        """
        feed = {site + GIVEN: given[site] for site in self.values if site + GIVEN in self._inputs}
        return self.network.run(images, feed)


def rounded_values(model: onnx.ModelProto, sites: Collection[str]) -> dict[str, str]:
    """Return the name of each activation quantizer's result in a QDQ model."""
    stored = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        site = node.name.removesuffix(DEQUANTIZE)
        if node.op_type == "DequantizeLinear" and node.input[0] not in stored and site in sites:
            found[site] = node.output[0]
    return found


def cut_model(model: onnx.ModelProto, values: Mapping[str, str]) -> onnx.ModelProto:
    """Return a copy in which readers of these values read inputs called ``<site>/given``.

    The inputs pass through QuantizeLinear and DequantizeLinear again, which does not change
    quantized values. So engines compute the same layers in integers as without the cuts.
    """
    # OpenVINO needs the inputs' numbers of dimensions, which the file leaves out.
    copy = onnx.shape_inference.infer_shapes(model)
    makers = {name: node for node in copy.graph.node for name in node.output}
    infos = {info.name: info for info in [*copy.graph.value_info, *copy.graph.output]}
    read = {name for node in copy.graph.node for name in node.input}
    instead: dict[str, str] = {}
    front = []
    for site, value in values.items():
        if value not in read:
            continue
        given, integers, real = site + GIVEN, f"{site}{GIVEN}/integers", f"{site}{GIVEN}/real"
        copy.graph.input.append(
            onnx.helper.make_tensor_value_info(given, onnx.TensorProto.FLOAT, None)
        )
        if value in infos:
            copy.graph.input[-1].type.CopyFrom(infos[value].type)
        parameters = list(makers[value].input[1:])
        front.append(onnx.helper.make_node("QuantizeLinear", [given, *parameters], [integers]))
        front.append(onnx.helper.make_node("DequantizeLinear", [integers, *parameters], [real]))
        instead[value] = real
    for node in copy.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = instead.get(name, name)
    rest = [onnx.NodeProto.FromString(node.SerializeToString()) for node in copy.graph.node]
    del copy.graph.node[:]
    copy.graph.node.extend([*front, *rest])
    return copy


def _layers_of(model: onnx.ModelProto, values: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the names of the weight quantizers before each value, back to the model's inputs."""
    stored = {tensor.name for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, tuple[str, ...]] = {}
    for value in values:
        layers: dict[str, None] = {}
        seen: set[str] = set()
        stack = [value]
        while stack:
            name = stack.pop()
            if name in seen or name not in makers:
                continue
            seen.add(name)
            node = makers[name]
            stack += node.input
            if node.op_type == "DequantizeLinear" and node.input[0] in stored:
                layers[node.name.removesuffix(DEQUANTIZE).partition("#")[0]] = None
        found[value] = tuple(layers)
    return found
