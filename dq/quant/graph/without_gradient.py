"""Parts of a forward pass under ``torch.no_grad()``: their results have no gradient.

torch.fx records operations and not the context they run in. Each operation is marked while it is
traced. Then what such a part computes is detached where the rest of the graph reads it.
"""

from __future__ import annotations

import operator

from torch import fx, nn

from dq.quant.graph.nodes import WITHOUT_GRADIENT, is_shape, module_of
from dq.quant.graph.writes import may_be_view, target_of


def detach_results_(root: nn.Module, graph: fx.Graph) -> None:
    """Insert ``detach`` after the parts without a gradient, in place.

    A write in place in such a part changes a tensor's values and not how its gradient is computed.
    So it becomes a write into the detached tensor.

    Args:
        root: The model whose modules the graph calls.
        graph: As traced by torch.fx, with in-place writes.
    """
    detached: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if node.target is operator.getitem and _has_none(node.args[0]):
            node.meta[WITHOUT_GRADIENT] = True  # One of several results.
        if WITHOUT_GRADIENT in node.meta:
            _detach_written(root, node)
            continue
        for used in node.all_input_nodes:
            if _has_none(used):
                if used not in detached:
                    detached[used] = _insert_detach(graph, used, before=node)
                node.replace_input_with(used, detached[used])


def _has_none(value: object) -> bool:
    return isinstance(value, fx.Node) and WITHOUT_GRADIENT in value.meta and not is_shape(value)


def _detach_written(root: nn.Module, node: fx.Node) -> None:
    """Let a node that writes, or takes a view that may be written into, read a detached tensor."""
    target = target_of(node, module_of(root, node))
    writes = target is not None
    if not writes and may_be_view(node) and node.args and isinstance(node.args[0], fx.Node):
        target = node.args[0]
    if target is None or is_shape(target) or _has_none(target) or target.op == "get_attr":
        return
    if writes:  # The result is the tensor itself, which keeps its gradient.
        node.replace_all_uses_with(target)
    detached = _insert_detach(node.graph, target, before=node)
    detached.meta[WITHOUT_GRADIENT] = True
    node.replace_input_with(target, detached)


def _insert_detach(graph: fx.Graph, node: fx.Node, *, before: fx.Node) -> fx.Node:
    with graph.inserting_before(before):
        detached: fx.Node = graph.call_method("detach", (node,))
    stack = "nn_module_stack"
    detached.meta = {stack: node.meta[stack]} if stack in node.meta else {}
    return detached
