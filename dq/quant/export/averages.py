"""Averages in the form that engines compute in integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_IMAGE = {2, 3}


def fit_averages_(model: ir.Model) -> None:
    """Write means over height and width as GlobalAveragePool, in place.

    torch.onnx writes them as ReduceMean, which engines compute in float: the last digits of its
    result depend on the order of the sum. An average over windows without padding is written as one
    that does not count padding. It is the same, but ONNX Runtime's integer kernel would count the
    pixels that a last, partial window lacks.

    Args:
        model: With static ranks.
    """
    for node in list(model.graph):
        if node.op_type == "ReduceMean" and _is_over_the_image(node):
            _write_global_average(model, node)
        elif node.op_type == "AveragePool" and not any(_ints(node, "pads")):
            node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 0)


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
    keepdims = "keepdims" not in node.attributes or bool(node.attributes["keepdims"].as_int())
    before = node.outputs[0]
    name = str(before.name)
    new = ir.node("GlobalAveragePool", [node.inputs[0]], name=f"{node.name}/average")
    nodes, after = [new], new.outputs[0]
    after.type = before.type
    if keepdims:
        after.shape = before.shape
    else:
        assert before.shape is not None
        after.name, after.shape = f"{name}/average", ir.Shape([*before.shape, 1, 1])
        axes = ir.tensor(np.array(sorted(_IMAGE), np.int64), name=f"{name}/axes")
        constant = ir.Value(
            name=axes.name,
            shape=ir.Shape((2,)),
            type=ir.TensorType(ir.DataType.INT64),
            const_value=axes,
        )
        model.graph.register_initializer(constant)
        squeeze = ir.node("Squeeze", [after, constant], name=f"{node.name}/squeeze")
        nodes, after = [new, squeeze], squeeze.outputs[0]
        after.shape, after.type = before.shape, before.type
    for inner in nodes:
        model.graph.insert_before(node, inner)
    before.name, after.name = f"{name}/replaced", name
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
