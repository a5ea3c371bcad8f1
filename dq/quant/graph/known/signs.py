"""Which values of a graph are never negative, and which are its inputs.

If a recipe has no zero points, values that are never negative get an unsigned format. Inputs keep
their zero points.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx, nn

from dq.quant.graph.functions import Function
from dq.quant.graph.nodes import called_name, module_of
from dq.quant.graph.roles import Role, role_of, tensor_inputs

# Mixers whose results may be negative although no input is.
_SUBTRACTING = {"sub", "isub"}
_OVERSHOOTING = "bicubic"
# Functions of whole rows, which `dq.quant.graph.functions` does not search for.
_SHARES = {"softmax"}


def never_negative(root: nn.Module, graph: fx.Graph, functions: Iterable[Function]) -> set[fx.Node]:
    """Return the nodes whose values are known to be 0 or more.

    Values of layers and inputs, and of everything unknown, may be negative.

    Args:
        root: The model.
        graph: Its graph, without quantizers of activations.
        functions: Its functions, from `dq.quant.graph.functions.find_functions`.
    """
    found = {function.value for function in functions if function.is_never_negative}
    for node in graph.nodes:
        if _keeps_the_sign(root, node):
            inputs = tensor_inputs(node)
            if inputs and all(each in found for each in inputs):
                found.add(node)
        elif called_name(node) in _SHARES or isinstance(module_of(root, node), nn.Softmax):
            found.add(node)
    return found


def moved_inputs(root: nn.Module, graph: fx.Graph) -> set[fx.Node]:
    """Return the inputs of a graph, and the nodes that only move their values."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        role = role_of(root, node)
        moved = tensor_inputs(node) if role in (Role.CARRIER, Role.JOIN) else []
        if role is Role.INPUT or (moved and all(each in found for each in moved)):
            found.add(node)
    return found


def _keeps_the_sign(root: nn.Module, node: fx.Node) -> bool:
    """Say whether the node's value is 0 or more if all of its inputs are."""
    role, module = role_of(root, node), module_of(root, node)
    if role is Role.MIXER:
        settings = (*node.args, *node.kwargs.values(), getattr(module, "mode", None))
        subtracts = called_name(node) in _SUBTRACTING or "alpha" in node.kwargs
        return not subtracts and _OVERSHOOTING not in settings
    if role is Role.CARRIER and called_name(node) == "pad":
        value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
        return value is None or (isinstance(value, int | float) and value >= 0)
    return role in (Role.CARRIER, Role.JOIN)
