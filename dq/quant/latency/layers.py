"""Which layer of a model each executed operator belongs to, whatever an engine has fused.

A layer is a convolution, a transposed one or a matrix product, with everything between it and the
next layers: its activation function, rounding, sums. Engines fuse, rename and insert nodes, so each
node and each value of the model gets the number of its layer as a part of its name. What an engine
inserts belongs to the operator before it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from dq.quant.latency.engine import Executed
from dq.quant.latency.float_twin import DEQUANTIZE, renamed_inputs_

_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_TAG = re.compile(r"@layer(\d+)@")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer of a model.

    Attributes:
        name: Of its weight, as the file has it; the name of its node if it has none.
        is_quantized: The file has integers for its weight.
    """

    name: str
    is_quantized: bool

    @property
    def module(self) -> str:
        """The detector's module, if `dq.quant.export` has written the file."""
        first = self.name.partition("+")[0].removesuffix("/weight")
        return first.replace("/", ".")


def with_layer_numbers(model: ModelProto) -> tuple[ModelProto, list[Layer]]:
    """Return a copy in which all nodes and values have the number of their layer in their name.

    Returns:
        The copy, and the layers in the order of their numbers.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    layers, numbers = _assigned(copy)
    names: dict[str, str] = {}
    for node, number in zip(copy.graph.node, numbers, strict=True):
        renamed_inputs_([node], names)
        if number is not None:
            node.name = f"{node.name}@layer{number}@"
            for index, name in enumerate(node.output):
                node.output[index] = names[name] = f"{name}@layer{number}@" if name else ""
    for output in copy.graph.output:
        output.name = names.get(output.name, output.name)
    copy.graph.ClearField("value_info")
    return copy, layers


def by_layer(executed: Sequence[Executed]) -> dict[int, list[Executed]]:
    """Return the executed operators of each layer, by its number."""
    numbers: list[int | None] = [_number(one.names) for one in executed]
    found: dict[int, list[Executed]] = defaultdict(list)
    # Twice: an operator may stand in the list before the one that it reads.
    for _ in range(2):
        for place, one in enumerate(executed):
            if numbers[place] is None:
                before = [n for n in (numbers[p] for p in one.after) if n is not None]
                numbers[place] = max(before, default=None)
    for number, one in zip(numbers, executed, strict=True):
        found[0 if number is None else number].append(one)
    return found


def _number(names: str) -> int | None:
    """Return the highest number in a text: a fused operator ends where its last node does."""
    return max(map(int, _TAG.findall(names)), default=None)


def _assigned(model: ModelProto) -> tuple[list[Layer], list[int | None]]:
    """Return the layers, and for each node the number of its layer; None if there is no layer."""
    nodes = model.graph.node
    makers = {name: node for node in nodes for name in node.output}
    layers: list[Layer] = []
    numbers: list[int | None] = []
    of_value: dict[str, int] = {}
    for node in nodes:
        if node.op_type in _LAYERS:
            layers.append(_layer(node, makers))
            number: int | None = len(layers) - 1
        else:
            number = max((of_value[n] for n in node.input if n in of_value), default=None)
        numbers.append(number)
        if number is not None:
            of_value |= dict.fromkeys(node.output, number)
    # What comes before the first layer, and weights, belong to the layer that reads them.
    reader: dict[str, int] = {}
    for place in reversed(range(len(nodes))):
        if numbers[place] is None:
            numbers[place] = min((reader[n] for n in nodes[place].output if n in reader),
                                 default=None)  # fmt: skip
        number = numbers[place]
        if number is not None:
            for name in nodes[place].input:
                reader[name] = min(number, reader.get(name, number))
    return layers, numbers


def _layer(node: NodeProto, makers: Mapping[str, NodeProto]) -> Layer:
    weight = node.input[1]
    maker = makers.get(weight)
    # A Transpose, or what an exporter writes between a weight and its layer.
    while maker is not None and maker.op_type != DEQUANTIZE and len(maker.input) == 1:
        weight = maker.input[0]
        maker = makers.get(weight)
    if maker is None:
        return Layer(name=weight, is_quantized=False)
    if maker.op_type != DEQUANTIZE or maker.input[0] in makers:  # The weight is computed.
        return Layer(name=node.name, is_quantized=False)
    site = maker.name.removesuffix("/dequantize").partition("#")[0]
    return Layer(name=site or weight, is_quantized=True)
