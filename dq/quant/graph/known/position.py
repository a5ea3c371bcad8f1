"""The position of a node in the network: before all layers, after all layers, or between."""

from __future__ import annotations

from torch import fx, nn

from dq.quant.graph.roles import is_layer


def positions(root: nn.Module, graph: fx.Graph) -> dict[fx.Node, frozenset[str]]:
    """Return for each node ``first`` if no layer precedes it and ``last`` if none follows.

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
    return {
        node: frozenset(
            name
            for name, beyond in (("first", after_a_layer), ("last", before_a_layer))
            if node not in beyond
        )
        for node in graph.nodes
    }
