"""The nodes of a traced graph: what they call, what they compute, and which of them are sizes.

Files store a graph as a list of its nodes: pickle would recurse once for each linked node.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

# In a node's meta: it is one part of the result of a module that was kept whole.
PART_OF_RESULT = "part_of_a_result"
# In a node's meta: it writes into the model's own tensors and must not be removed as dead code.
SIDE_EFFECT = "writes_into_the_model"
# In a node's meta: it was traced under ``torch.no_grad()``.
WITHOUT_GRADIENT = "without_a_gradient"

# The input of a graph, or a tuple if the graph has several.
Given = Tensor | tuple[Tensor, ...]

SHAPE_METHODS = {"size", "dim", "numel", "new_tensor", "new_zeros", "new_ones", "new_full"}
SHAPE_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "is_cuda", "requires_grad"}


def module_of(root: nn.Module, node: fx.Node) -> nn.Module | None:
    """Return the module that a ``call_module`` node calls, None for other nodes."""
    if node.op != "call_module":
        return None
    assert isinstance(node.target, str)
    return root.get_submodule(node.target)


def computed(root: nn.Module, node: fx.Node, value: Callable[[fx.Node], Any], given: Given) -> Any:
    """Return a node's value.

    Args:
        root: The module that the graph's names refer to.
        node: A node of the graph.
        value: Returns the value of a node that this one reads.
        given: The graph's input, or all its inputs.
    """
    if node.op == "placeholder":
        inputs = [each for each in node.graph.nodes if each.op == "placeholder"]
        return as_tuple(given)[inputs.index(node)]
    args = fx.map_arg(node.args, value)
    kwargs = fx.map_arg(node.kwargs, value)
    if node.op == "get_attr":
        found: Any = root
        for part in str(node.target).split("."):
            found = getattr(found, part)
        return found
    if node.op == "output":
        return args[0]
    if node.op == "call_module":
        module = module_of(root, node)
        assert module is not None
        return module(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def as_tuple(given: Given) -> tuple[Tensor, ...]:
    """Return the inputs of one call of a graph."""
    return (given,) if isinstance(given, Tensor) else given


def called_name(node: fx.Node) -> str:
    """Return the name of the function or method that a node calls, without a final underscore."""
    target = node.target
    return target.rstrip("_") if isinstance(target, str) else getattr(target, "__name__", "")


def remembered(rule: Callable[[fx.Node], bool]) -> Callable[[fx.Node], bool]:
    """Return a rule about nodes that is asked once for each node, its inputs first.

    Without that, a rule that asks about its inputs would take exponential time, and in a deep
    network the calls would nest too deeply. The answer is in the node's meta, which torch.fx copies
    with the node. So a part of a graph keeps the answers for the whole graph.

    Args:
        rule: Asks about no other nodes than the inputs of its node.
    """
    key = rule.__name__

    @functools.wraps(rule)
    def ask(node: fx.Node) -> bool:
        waiting = [node] if key not in node.meta else []
        while waiting:
            unknown = [n for n in waiting[-1].all_input_nodes if key not in n.meta]
            if unknown:
                waiting += unknown
            else:
                last = waiting.pop()
                last.meta[key] = rule(last)
        return bool(node.meta[key])

    return ask


@remembered
def is_shape(node: fx.Node) -> bool:
    """Say whether the value is a size, a dtype or a device, or computed only from these."""
    if node.op == "call_method" and node.target in SHAPE_METHODS:
        return True
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in SHAPE_ATTRIBUTES
    arguments = node.all_input_nodes
    called = node.op in {"call_function", "call_method"}
    return called and bool(arguments) and all(is_shape(n) for n in arguments)


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
