"""Quantize a model's input after it has been rearranged, not before.

YOLOX begins with four strided slices of the image and their concatenation. Engines compute these
five operations as one (SpaceToDepth), but only if no quantizer is between them. Quantization gives
the same numbers before and after values are moved, so one quantizer after the last move is enough.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from dq.quant.export.placeholders import is_repeated, is_rounding, site_of

# Operations that return some of the values of their inputs, in another order.
_MOVES = frozenset({"Concat", "DepthToSpace", "Identity", "Reshape", "Slice"}) | frozenset(
    {"SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)


def round_inputs_late_(model: ir.Model) -> int:
    """Remove quantization of inputs that is repeated after their values were moved, in place.

    Only repetitions of a quantizer (see `dq.quant.integer.convert`) are removed, and only if all
    their readers quantize the values in the same way again. The quantizer's first place stays.

    Args:
        model: With placeholders, as `dq.quant.export.onnx_graph.placeholder_model` returns it.

    Returns:
        The number of removed placeholders.
    """
    removed = 0
    moved = {id(value) for value in model.graph.inputs}
    for node in list(model.graph):
        if not any(id(value) in moved for value in node.inputs):
            continue
        if node.op_type in _MOVES:
            moved |= {id(value) for value in node.outputs}
        elif (
            is_rounding(node)
            and is_repeated(node)
            and _is_rounded_again(node.outputs[0], site_of(node))
        ):
            before = node.inputs[0]
            assert before is not None
            node.outputs[0].replace_all_uses_with(before)
            model.graph.remove(node, safe=True)
            removed += 1
    return removed


def _is_rounded_again(value: ir.Value, site: str) -> bool:
    """Return whether all readers quantize a value in the same way, directly or after moves."""
    readers = [use.node for use in value.uses()]
    if not readers or value.is_graph_output():
        return False
    return all(
        site_of(node) == site
        if is_rounding(node)
        else node.op_type in _MOVES and all(_is_rounded_again(out, site) for out in _results(node))
        for node in readers
    )


def _results(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the outputs that have readers or are returned."""
    return (value for value in node.outputs if value.uses() or value.is_graph_output())
