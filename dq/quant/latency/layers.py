"""Find the layer of a model that each executed operator belongs to, after fusion by an engine.

A layer is a convolution, a transposed convolution or a matrix product, with everything up to the
next layers: its activation function, quantization, sums. Engines fuse, rename and insert nodes.
So the number of its layer is added to the name of each node and value, where it survives this. A
node that an engine inserts belongs to the layer of the operator before it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from onnx import ModelProto, NodeProto

from dq.quant.latency.engine import Executed
from dq.quant.latency.float_twin import renamed_inputs_
from dq.quant.latency.formats import DEQUANTIZE, site_of

_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_TAG = re.compile(r"@layer(\d+)@")
# The tag of the convolution or product itself, not of the nodes after it.
_OWN = re.compile(r"@layer(\d+)@own@")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer of a model.

    Attributes:
        name: Name of its weight in the file; that of its node if the weight has none.
        is_quantized: Whether the file has integers for its weight.
    """

    name: str
    is_quantized: bool

    @property
    def module(self) -> str:
        """Name of the detector's module, if `dq.quant.export` has written the file."""
        first = self.name.partition("+")[0].removesuffix("/weight")
        return first.replace("/", ".")


def with_layer_numbers(model: ModelProto) -> tuple[ModelProto, list[Layer]]:
    """Return a copy in which the names of all nodes and values contain the number of their layer.

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
            tag = f"@layer{number}@{'own@' if node.op_type in _LAYERS else ''}"
            node.name += tag
            for index, name in enumerate(node.output):
                node.output[index] = names[name] = name + tag if name else ""
    for output in copy.graph.output:
        output.name = names.get(output.name, output.name)
    copy.graph.ClearField("value_info")
    return copy, layers


def by_layer(executed: Sequence[Executed]) -> dict[int, list[Executed]]:
    """Return the executed operators of each layer, by its number."""
    numbers: list[int | None] = [_number(one.names) for one in executed]
    found: dict[int, list[Executed]] = defaultdict(list)
    # Twice, because an operator may be in the list before the one that it reads.
    for _ in range(2):
        for place, one in enumerate(executed):
            if numbers[place] is None:
                before = [n for n in (numbers[p] for p in one.after) if n is not None]
                numbers[place] = max(before, default=None)
    for number, one in zip(numbers, executed, strict=True):
        found[0 if number is None else number].append(one)
    return found


def absorbed(*engines: Sequence[Executed]) -> dict[int, int]:
    """Return the layers that an engine computes together with a later one: earlier -> last.

    Layers are together if any of the engines joins them, also through layers between them: if one
    joins 1 with 2 and another 2 with 3, the last of both 1 and 2 is 3.
    """
    groups: list[set[int]] = []
    for one in chain(*engines):
        group = {*map(int, _OWN.findall(one.names))}
        if len(group) > 1:
            apart = [other for other in groups if not other & group]
            groups = [*apart, group.union(*(other for other in groups if other & group))]
    return {number: max(group) for group in groups for number in group if number != max(group)}


def _number(names: str) -> int | None:
    """Return the number of the last layer in a text; None if there is none."""
    numbers = _OWN.findall(names) or _TAG.findall(names)
    return max(map(int, numbers), default=None)


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
    # Nodes before the first layer, and weights, belong to the layer that reads them.
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
    # A Transpose or another node with one input between a weight and its layer.
    while maker is not None and maker.op_type != DEQUANTIZE and len(maker.input) == 1:
        weight = maker.input[0]
        maker = makers.get(weight)
    if maker is None:
        return Layer(name=weight, is_quantized=False)
    if maker.op_type != DEQUANTIZE or maker.input[0] in makers:  # The weight is computed.
        return Layer(name=node.name, is_quantized=False)
    return Layer(name=site_of(maker) or weight, is_quantized=True)
