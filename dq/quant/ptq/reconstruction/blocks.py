"""Cut a graph into blocks of some layers each, for methods that work block by block.

A block is a run of consecutive nodes. It reads values of earlier blocks and gives values to later
ones; the fewer these are, the better its error says what later blocks will see. So a cut is made
where few values are alive, and all of them quantized if possible. All calls of a shared layer are
in one block.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import fx, nn

from dq.quant.graph.nodes import is_shape, module_of
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.quantizers.fake_quantize import ActivationQuantizer
from dq.quant.quantizers.layers import QuantizedLayer

# Layers of a block.
FEWEST, MOST = 3, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Consecutive nodes of a graph.

    Attributes:
        nodes: All but those that only depend on parameters, see `constants`.
        inputs: Nodes of earlier blocks whose values these read.
        outputs: Those of ``nodes`` that later nodes read.
    """

    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]


def constants(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that depend on no input, such as parameters; any block may compute them."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        reads = node.all_input_nodes
        computed = node.op not in ("placeholder", "output") and bool(reads)
        if node.op == "get_attr" or (computed and found.issuperset(reads)):
            found.add(node)
    return found


def blocks_of(graph: QuantizedGraph, *, fewest: int = FEWEST, most: int = MOST) -> list[Block]:
    """Return the blocks of a graph, in order; together they have all nodes that compute something.

    Args:
        graph: Prepared.
        fewest: Smallest number of layers of a block; the last may have fewer.
        most: Largest number, as far as shared layers allow it.
    """
    fixed = constants(graph.graph)
    nodes = [n for n in graph.graph.nodes if n not in fixed and n.op != "output"]
    cuts = [0, *_cuts(graph.root, nodes, fewest, most), len(nodes)]
    return [_block(nodes[a:b], fixed) for a, b in pairwise(cuts) if a < b]


def _cuts(root: nn.Module, nodes: Sequence[fx.Node], fewest: int, most: int) -> list[int]:
    """Return the numbers of nodes before which a block begins, without the first."""
    costs = _costs(root, nodes)
    is_layer = [isinstance(module_of(root, node), QuantizedLayer) for node in nodes]
    found: list[int] = []
    best, layers = 0, 0
    for index, cost in enumerate(costs):
        layers += is_layer[index]
        if layers >= fewest and cost is not None and (not best or cost < (costs[best - 1] or cost)):
            best = index + 1
        if best and layers >= most:
            found.append(best)
            layers = sum(is_layer[best : index + 1])
            best = 0
    return found


def _costs(root: nn.Module, nodes: Sequence[fx.Node]) -> list[tuple[int, int] | None]:
    """Return, for a cut after each node, how many values cross it: unquantized ones, and all.

    None if the cut separates two calls of one layer.
    """
    number = {node: index for index, node in enumerate(nodes)}
    last_call = {
        str(node.target): index
        for index, node in enumerate(nodes)
        if isinstance(module_of(root, node), QuantizedLayer)
    }
    # The output reads after all others.
    last_reader = {n: max(number.get(user, len(nodes)) for user in n.users) for n in nodes}
    alive: dict[fx.Node, None] = {}
    reach, found = -1, []
    for index, node in enumerate(nodes):
        reach = max(reach, last_call.get(str(node.target), -1))
        if not is_shape(node):
            alive[node] = None
        alive = {n: None for n in alive if last_reader[n] > index}
        unrounded = sum(not _is_rounded(root, n) for n in alive)
        found.append((unrounded, len(alive)) if reach <= index else None)
    return found


def _is_rounded(root: nn.Module, node: fx.Node) -> bool:
    return node.op == "placeholder" or isinstance(module_of(root, node), ActivationQuantizer)


def _block(nodes: Sequence[fx.Node], fixed: Collection[fx.Node]) -> Block:
    inside = set(nodes)
    inputs = dict.fromkeys(
        used
        for node in nodes
        for used in node.all_input_nodes
        if used not in inside and used not in fixed
    )
    outputs = tuple(n for n in nodes if any(user not in inside for user in n.users))
    return Block(nodes=tuple(nodes), inputs=tuple(inputs), outputs=outputs)
