"""A graph as a list of its nodes, for a file: pickle would recurse once for each linked node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.fx.node import map_aggregate


@dataclass(frozen=True, slots=True)
class _Reference:
    """Stands for a node among the arguments of another.

    Attributes:
        index: Number of the node in its graph.
    """

    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatGraph:
    """All nodes of a graph, in its order.

    Attributes:
        nodes: The arguments of `torch.fx.Graph.create_node`, and the node's meta.
    """

    nodes: tuple[tuple[dict[str, Any], dict[str, Any]], ...]


def flattened(graph: fx.Graph) -> FlatGraph:
    """Return a graph as a list."""
    index = {node: number for number, node in enumerate(graph.nodes)}

    def stored(value: Any) -> Any:
        return _Reference(index[value]) if isinstance(value, fx.Node) else value

    return FlatGraph(
        nodes=tuple(
            (
                {
                    "op": node.op,
                    "target": node.target,
                    "args": map_aggregate(node.args, stored),
                    "kwargs": map_aggregate(node.kwargs, stored),
                    "name": node.name,
                    "type_expr": node.type,
                },
                dict(node.meta),
            )
            for node in graph.nodes
        )
    )


def restored(flat: FlatGraph) -> fx.Graph:
    """Return the graph of which `flattened` made the list."""
    graph = fx.Graph()
    nodes: list[fx.Node] = []

    def found(value: Any) -> Any:
        return nodes[value.index] if isinstance(value, _Reference) else value

    for given, meta in flat.nodes:
        args, kwargs = (map_aggregate(given[name], found) for name in ("args", "kwargs"))
        node = graph.create_node(**{**given, "args": args, "kwargs": kwargs})
        node.meta = dict(meta)
        nodes.append(node)
    return graph
