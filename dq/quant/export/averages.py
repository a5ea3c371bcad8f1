"""Write averages in the form that engines compute in integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from dq.quant.export.edits import constant, replace_node

_IMAGE = {2, 3}


def fit_averages_(model: ir.Model) -> None:
    """Write means over height and width as GlobalAveragePool, in place.

    torch.onnx writes them as ReduceMean, which engines compute in float; the last digits of the
    result then depend on the order of the sum.

    An AveragePool that counts its padding and may end with a partial window (``ceil_mode``) is
    written as a Pad and an AveragePool without padding. Otherwise ONNX Runtime would also count the
    places of the partial window that are outside of the padded image.

    Args:
        model: With static image sizes.
    """
    for node in list(model.graph):
        if node.op_type == "ReduceMean" and _is_over_the_image(node):
            _write_global_average(model, node)
        elif node.op_type == "AveragePool":
            _fit_windows(model, node)


def _fit_windows(model: ir.Model, node: ir.Node) -> None:
    pads, counts = _ints(node, "pads"), _flag(node, "count_include_pad")
    fitted = _padding_of_windows(node) if _flag(node, "ceil_mode") else pads
    if fitted is None:
        return
    # The image is cropped where the last window ends before it: a pool has no negative padding.
    outside = fitted if counts and _flag(node, "ceil_mode") else [min(end, 0) for end in fitted]
    if any(outside):
        _pad_before(model, node, outside)
        fitted = [end - other for end, other in zip(fitted, outside, strict=True)]
    node.attributes["pads"] = ir.AttrInt64s("pads", fitted)
    if not any(fitted):
        node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 0)


def _padding_of_windows(node: ir.Node) -> list[int] | None:
    """Return padding that ends with the last window, negative if the image is longer.

    torch leaves out a last window that starts in the padding, but ONNX does not. None if sizes are
    unknown.
    """
    value, pads = node.inputs[0], _ints(node, "pads")
    windows, strides = _ints(node, "kernel_shape"), _ints(node, "strides")
    if value is None or value.shape is None or not strides:
        return None
    num = len(windows)
    fitted = list(pads)
    for axis, (window, stride) in enumerate(zip(windows, strides, strict=True)):
        length = value.shape[2 + axis]
        if not isinstance(length, int):
            return None
        before, whole = pads[axis], length + pads[axis] + pads[num + axis]
        last = -(-(whole - window) // stride) * stride
        if last >= length + before:
            last -= stride
            fitted[num + axis] = min(last + window, whole) - length - before
    return fitted


def _pad_before(model: ir.Model, node: ir.Node, pads: list[int]) -> None:
    value = node.inputs[0]
    assert value is not None
    assert value.shape is not None
    half = len(pads) // 2
    whole = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
    numbers = constant(model.graph, f"{node.name}/pads", whole)
    pad = ir.node("Pad", [value, numbers], name=f"{node.name}/pad")
    pad.outputs[0].name, pad.outputs[0].type = f"{node.name}/padded", value.type
    model.graph.insert_before(node, pad)
    node.replace_input_with(0, pad.outputs[0])


def _flag(node: ir.Node, name: str) -> bool:
    return name in node.attributes and bool(node.attributes[name].as_int())


def _is_over_the_image(node: ir.Node) -> bool:
    value, axes = node.inputs[0], _axes(node)
    if value is None or value.shape is None or value.shape.rank() != 4 or axes is None:
        return False
    return {axis % 4 for axis in axes} == _IMAGE


def _axes(node: ir.Node) -> list[int] | None:
    """Return the dimensions of a mean; None if they are not constant."""
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        constant = node.inputs[1].const_value
        return None if constant is None else [int(a) for a in constant.numpy().reshape(-1)]
    return _ints(node, "axes") or None


def _ints(node: ir.Node, name: str) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else []


def _write_global_average(model: ir.Model, node: ir.Node) -> None:
    keepdims = "keepdims" not in node.attributes or _flag(node, "keepdims")
    result = node.outputs[0]
    nodes = [ir.node("GlobalAveragePool", [node.inputs[0]], name=f"{node.name}/average")]
    if not keepdims:
        average = nodes[0].outputs[0]
        assert result.shape is not None
        average.name, average.type = f"{result.name}/average", result.type
        average.shape = ir.Shape([*result.shape, 1, 1])
        axes = constant(model.graph, f"{result.name}/axes", np.array(sorted(_IMAGE), np.int64))
        nodes.append(ir.node("Squeeze", [average, axes], name=f"{node.name}/squeeze"))
    replace_node(model, node, nodes)
