"""The position of a node in the network: before or after all layers, at a depthwise layer."""

from __future__ import annotations

from torch import fx, nn

from dq.quant.graph.known.depthwise import is_depthwise
from dq.quant.graph.roles import is_layer


def positions(root: nn.Module, graph: fx.Graph) -> dict[fx.Node, frozenset[str]]:
    """Return which of `dq.quant.recipes.recipe.POSITIONS` apply to each node.

    ``first`` if no layer precedes it, ``last`` if none follows, ``depthwise`` if it is a
    convolution with one input channel in each group. ``last_input`` and ``depthwise_input`` if such
    a layer reads it, directly or after operations that are not layers.

    Args:
        root: The model.
        graph: Its graph.
    """
    layers = {node for node in graph.nodes if is_layer(root, node)}
    after_a_layer: set[fx.Node] = set()
    before_a_layer: set[fx.Node] = set()
    for node in graph.nodes:
        if any(n in layers or n in after_a_layer for n in node.all_input_nodes):
            after_a_layer.add(node)
    for node in reversed(graph.nodes):
        if any(n in layers or n in before_a_layer for n in node.users):
            before_a_layer.add(node)
    depthwise = {node for node in layers if is_depthwise(root, node)}
    read_by_last = _read_by(layers - before_a_layer, layers, graph)
    read_by_depthwise = _read_by(depthwise, layers, graph)
    return {
        node: frozenset(
            name
            for name, applies in (
                ("first", node not in after_a_layer),
                ("last", node not in before_a_layer),
                ("last_input", node in read_by_last),
                ("depthwise", node in depthwise),
                ("depthwise_input", node in read_by_depthwise),
            )
            if applies
        )
        for node in graph.nodes
    }


def _read_by(some: set[fx.Node], layers: set[fx.Node], graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that ``some`` of the layers read, with no other layer between."""
    found: set[fx.Node] = set()
    # Backwards, because the readers of a node come after it.
    for node in reversed(graph.nodes):
        if any(n in (some if n in layers else found) for n in node.users):
            found.add(node)
    return found
