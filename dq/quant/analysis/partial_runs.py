"""Run again only the nodes of a graph that depend on a quantizer, and keep all other values.

A quantizer changes only the values after it. All values before it, and on other branches, are those
of the float run. So after one float run of a batch, a run with one quantizer on computes only the
nodes that depend on it, with the same operators on the same values. The outputs are equal bit for
bit to those of a whole run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map

from dq.quant.graph.nodes import Given, computed, module_of
from dq.quant.graph.quantized_graph import QuantizedGraph, quantizer_of


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatRun:
    """The values of one batch without quantization.

    Attributes:
        batch: The images, or the inputs of a part.
        values: The values of the nodes that a partial run may read.
        outputs: What the graph returns.
    """

    batch: Given
    values: dict[fx.Node, Any]
    outputs: Any


class PartialRuns:
    """Partial runs of a graph in evaluation mode, one for each of some quantizers.

    Args:
        graph: Prepared; the caller sets the phases.
        names: Names of the quantizers.
    """

    def __init__(self, graph: QuantizedGraph, names: Sequence[str]) -> None:
        self.root = graph.root
        self.nodes = list(graph.graph.nodes)
        self.output = next(node for node in self.nodes if node.op == "output")
        self.changed = {name: self._changed_by(graph, name) for name in names}
        self._readers = {name: _readers(nodes) for name, nodes in self.changed.items()}
        self._all_readers = _readers(self.nodes)
        self._kept = {
            used for nodes in self.changed.values() for used in _readers(nodes).keys() - set(nodes)
        }
        self._writers: set[fx.Node] | None = None

    def _changed_by(self, graph: QuantizedGraph, name: str) -> list[fx.Node]:
        """Return the nodes whose values depend on a quantizer, in order."""
        quantizer = quantizer_of(graph, name)
        found: dict[fx.Node, None] = {}
        for node in self.nodes:
            module = module_of(self.root, node)
            is_own = module is not None and any(m is quantizer for m in module.modules())
            if is_own or any(used in found for used in node.all_input_nodes):
                found[node] = None
        return list(found)

    def in_float(self, batch: Given) -> FloatRun:
        """Run the whole graph and keep what partial runs read; all quantizers must be OFF."""
        if self._writers is None:
            self._writers = self._nodes_that_write(batch)
        values = self._run(self.nodes, batch, {}, self._all_readers, self._kept)
        return FloatRun(batch=batch, values=values, outputs=values.pop(self.output))

    def with_quantizer(self, name: str, run: FloatRun) -> Any:
        """Return the graph's outputs with this quantizer on; all others must be OFF.

        An output that the quantizer does not change is the very tensor of the float run.
        """
        nodes = self.changed[name]
        if self.output not in nodes:
            return run.outputs
        return self._run(nodes, run.batch, run.values, self._readers[name], ())[self.output]

    def _run(
        self,
        nodes: Sequence[fx.Node],
        batch: Given,
        known: dict[fx.Node, Any],
        readers: Counter[fx.Node],
        kept: Any,
    ) -> dict[fx.Node, Any]:
        """Compute these nodes; a value is freed after its last reader unless it is kept."""
        values: dict[fx.Node, Any] = {}
        waiting = readers.copy()
        for node in nodes:
            writes = node in (self._writers or ())

            def value(used: fx.Node, writes: bool = writes) -> Any:
                found = values[used] if used in values else known[used]
                # A value may be read again, in this run or in the next.
                return tree_map(_copied, found) if writes else found

            values[node] = computed(self.root, node, value, batch)
            for used in node.all_input_nodes:
                waiting[used] -= 1
                if not waiting[used] and used not in kept:
                    values.pop(used, None)
            if not waiting[node] and node not in kept and node is not self.output:
                del values[node]
        return values

    def _nodes_that_write(self, batch: Given) -> set[fx.Node]:
        """Return the nodes that overwrite a value which they read, found by a run."""
        found: set[fx.Node] = set()
        values: dict[fx.Node, Any] = {}
        waiting = self._all_readers.copy()
        for node in self.nodes:
            tensors = [
                leaf
                for used in node.all_input_nodes
                for leaf in tree_leaves(values[used])
                if isinstance(leaf, Tensor)
            ]
            before = [tensor._version for tensor in tensors]
            values[node] = computed(self.root, node, values.__getitem__, batch)
            if before != [tensor._version for tensor in tensors]:
                found.add(node)
            for used in node.all_input_nodes:
                waiting[used] -= 1
                if not waiting[used]:
                    del values[used]
        return found


def _readers(nodes: Sequence[fx.Node]) -> Counter[fx.Node]:
    """Return how often each node is read by these."""
    return Counter(used for node in nodes for used in node.all_input_nodes)


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf
