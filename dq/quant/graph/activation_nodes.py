"""Recognise nodes that call an activation function: as a module, function or method."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from dq.quant.graph.nodes import module_of
from dq.quant.numerics.activation_functions import WRITTEN, ActivationFunction, Bounds


def what(root: nn.Module, node: fx.Node) -> Any:
    """Return the type of the module, the function, or the name of the method that a node calls."""
    module = module_of(root, node)
    return node.target if module is None else type(module)


def settings(root: nn.Module, node: fx.Node, *names: str, **defaults: Any) -> list[Any]:
    """Return a node's arguments after the first, or its module's attributes, by name.

    Args:
        root: Contains the node's module.
        node: Calls a module, a function or a method.
        names: Names of the arguments, in order.
        defaults: Values of arguments that may be missing.
    """
    module = module_of(root, node)
    given = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    return [
        given.get(name, defaults.get(name)) if module is None else getattr(module, name)
        for name in names
    ]


def activation_of(root: nn.Module, node: fx.Node) -> ActivationFunction | None:
    """Return the activation function that a node calls; None for other nodes."""
    return WRITTEN.get(what(root, node))


def settings_of(root: nn.Module, node: fx.Node) -> dict[str, Any]:
    """Return the settings of a node's activation function, by name."""
    function = WRITTEN[what(root, node)]
    found = settings(root, node, *function.settings, **function.settings)
    return dict(zip(function.settings, found, strict=True))


def clip_of(root: nn.Module, node: fx.Node) -> Bounds | None:
    """Return the bounds of an activation function that only clips; None for other nodes."""
    function = activation_of(root, node)
    if function is None or function.clip is None:
        return None
    return function.clip(**settings_of(root, node))
