"""Write strided slices of an image and their concatenation as one SpaceToDepth.

YOLOX begins with four slices of every second pixel. ONNX Runtime computes them as one operation
whatever the file says, but OpenVINO copies each slice, which takes a tenth of YOLOX-Nano's time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from dq.quant.export.edits import constant, replace_node

_HEIGHT, _WIDTH = 2, 3
# By axis: where the slice begins, and its step.
_Place = dict[int, tuple[int, int]]


def join_slices_(model: ir.Model) -> int:
    """Replace concatenated slices that together are a whole image, in place.

    The values stay the same. If their order is not that of SpaceToDepth, a Gather restores it.

    Args:
        model: With static image sizes.

    Returns:
        The number of replaced concatenations.
    """
    replaced = 0
    for node in list(model.graph):
        if node.op_type == "Concat" and node.attributes["axis"].as_int() == 1:
            replaced += _replace(model, node)
    if replaced:
        _remove_unread_slices(model)
    return replaced


def _replace(model: ir.Model, concat: ir.Node) -> bool:
    found = [_slice_of(value) for value in concat.inputs]
    sources = {id(source) for source, _ in found}
    image = found[0][0]
    if len(sources) != 1 or image is None or len(found) < 2:
        return False
    places = [place for _, place in found]
    step = next(iter(places[0].values()), (0, 1))[1]
    order = [_number_of(place, step) for place in places]
    if sorted(order) != list(range(step * step)):
        return False
    channels = _channels(image, step)
    if channels is None:
        return False
    _write(model, concat, image, step, [n * channels + c for n in order for c in range(channels)])
    return True


def _slice_of(value: ir.Value | None) -> tuple[ir.Value | None, _Place]:
    """Return the tensor that a value is sliced from, and which part of it the value is."""
    place: _Place = {}
    while value is not None and (node := value.producer()) is not None and node.op_type == "Slice":
        one = _axis_of(node)
        if one is None or one[0] in place:
            break
        place[one[0]] = one[1:]
        value = node.inputs[0]
    return value, place


def _axis_of(node: ir.Node) -> tuple[int, int, int] | None:
    """Return axis, begin and step of a slice to the end of one axis; None for other slices."""
    value = node.inputs[0]
    if value is None or value.shape is None or len(node.inputs) != 5:
        return None
    numbers = [_single(given) for given in node.inputs[1:]]
    begin, end, axis, step = numbers
    if begin is None or end is None or axis is None or step is None:
        return None
    length = value.shape[axis]
    if not isinstance(length, int) or begin < 0 or end < length:
        return None
    return axis % value.shape.rank(), begin, step


def _single(value: ir.Value | None) -> int | None:
    constant = None if value is None else value.const_value
    if constant is None or constant.size != 1:
        return None
    return int(constant.numpy().reshape(-1)[0])


def _number_of(place: _Place, step: int) -> int:
    """Return the place of a slice's channels in SpaceToDepth's result; -1 if it has none."""
    if step < 2 or set(place) != {_HEIGHT, _WIDTH}:
        return -1
    if any(given != step or begin >= step for begin, given in place.values()):
        return -1
    return place[_HEIGHT][0] * step + place[_WIDTH][0]


def _channels(image: ir.Value, step: int) -> int | None:
    """Return the image's number of channels; None if it cannot be divided into blocks."""
    shape = image.shape
    if shape is None or shape.rank() != 4:
        return None
    channels, height, width = shape[1], shape[_HEIGHT], shape[_WIDTH]
    if not (isinstance(channels, int) and isinstance(height, int) and isinstance(width, int)):
        return None
    return None if height % step or width % step else channels


def _write(
    model: ir.Model, concat: ir.Node, image: ir.Value, step: int, order: Sequence[int]
) -> None:
    nodes = [ir.node("SpaceToDepth", [image], {"blocksize": step}, name=f"{concat.name}/blocks")]
    if list(order) != list(range(len(order))):
        result, blocks = concat.outputs[0], nodes[0].outputs[0]
        blocks.name, blocks.shape = f"{result.name}/blocks", result.shape
        blocks.type = result.type
        numbers = constant(model.graph, f"{result.name}/order", np.array(order, np.int64))
        gather = ir.node("Gather", [blocks, numbers], {"axis": 1}, name=f"{concat.name}/order")
        nodes.append(gather)
    replace_node(model, concat, nodes)


def _remove_unread_slices(model: ir.Model) -> None:
    # From the last one back: a slice may be the only reader of another.
    for node in reversed(list(model.graph)):
        result = node.outputs[0]
        if node.op_type == "Slice" and not (result.uses() or result.is_graph_output()):
            model.graph.remove(node, safe=True)
