"""Where in the network a node stands: before all layers, behind all layers, or between."""

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
    behind: set[fx.Node] = set()
    before: set[fx.Node] = set()
    for node in graph.nodes:
        if any(n in layers or n in behind for n in node.all_input_nodes):
            behind.add(node)
    for node in reversed(graph.nodes):
        if any(n in layers or n in before for n in node.users):
            before.add(node)
    return {
        node: frozenset(
            name for name, beyond in (("first", behind), ("last", before)) if node not in beyond
        )
        for node in graph.nodes
    }
