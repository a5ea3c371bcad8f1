"""Edits of an ONNX graph that several rewrites make."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def constant(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Return the initializer of this name, created from ``array`` if it does not exist."""
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        graph.register_initializer(value)
    return graph.initializers[name]


def replace_node(model: ir.Model, node: ir.Node, others: Sequence[ir.Node]) -> None:
    """Replace a node by others; the result of the last one takes the name and shape of its result.

    Args:
        model: Changed in place.
        node: With one result; it is removed.
        others: In order, not yet in the graph.
    """
    before, after = node.outputs[0], others[-1].outputs[0]
    after.shape, after.type = before.shape, before.type
    for other in others:
        model.graph.insert_before(node, other)
    name = str(before.name)
    before.name, after.name = f"{name}/replaced", name
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
