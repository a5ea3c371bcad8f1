"""Run a prepared graph twice at once, in float and fake-quantized, and visit every layer.

One pass over the graph carries the tensors of all images from node to node. So a method sees each
layer's input and target output after all earlier layers were changed, and nothing is computed
twice. A tensor is freed after its last reader has run.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from dq.progress import Progress
from dq.quant.graph.nodes import Given, computed
from dq.quant.graph.quantized_graph import CONTAINER, QuantizedGraph, Site
from dq.quant.graph.roles import module_of
from dq.quant.quantizers.layers import QuantizedLayer
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.quantizers.restore import in_phase


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedLayer:
    """A layer, with its norm, that is about to be computed in the fake-quantized run.

    Attributes:
        site: The site of its weight.
        quantized: Computes it.
        layer: The float layer, to be changed in place.
        norm: The folded batch norm, or None.
        inputs: Its inputs with all earlier layers quantized; one tensor per batch of images and
            call of the layer.
        targets: The float model's outputs there; as many as ``inputs``.
    """

    site: Site
    quantized: QuantizedLayer
    layer: nn.Module
    norm: nn.Module | None
    inputs: list[Tensor]
    targets: list[Tensor]

    def outputs(self) -> Iterator[Tensor]:
        """Yield the present output of the quantized layer for each input."""
        for x in self.inputs:
            yield self.quantized(x, self.layer, self.norm)


@torch.no_grad()
def walk(
    graph: QuantizedGraph,
    batches: Sequence[Given],
    visit: Callable[[CapturedLayer], None],
    what: str,
    plain_batches: Sequence[Given] | None = None,
) -> None:
    """Call ``visit`` for every quantized layer, in the order of execution.

    All calls of a shared layer are one visit if the graph allows it.

    Args:
        graph: Prepared, with ranges, in evaluation mode; phases are restored.
        batches: Images ``(N, 3, H, W)`` on the model's device, or the inputs of a part.
        visit: May change the layer's parameters.
        what: Name of the method, for the log.
        plain_batches: Inputs of the float run, None for the same.
    """
    reference = float_copy(graph.root)
    given_plain = batches if plain_batches is None else plain_batches
    layers = {f"{CONTAINER}.{entry[0].name}": entry for entry in graph.layers()}
    readers = Counter(n for node in graph.graph.nodes for n in node.all_input_nodes)
    plain: dict[fx.Node, list[Any]] = {}
    fake_quantized: dict[fx.Node, list[Any]] = {}
    with fake_quantizing(graph), Progress(what, len(layers), "layer[s]") as shown:
        for group in _groups(graph):
            inputs: list[Tensor] = []
            targets: list[Tensor] = []
            for node in group:
                plain[node] = [
                    _run(node, reference, plain, b, x) for b, x in enumerate(given_plain)
                ]
                if node.target in layers:
                    first = node.args[0]
                    assert isinstance(first, fx.Node)
                    inputs += fake_quantized[first]
                    targets += plain[node]
            if inputs:
                site, quantized, layer, norm = layers[str(group[0].target)]
                visit(
                    CapturedLayer(
                        site=site,
                        quantized=quantized,
                        layer=layer,
                        norm=norm,
                        inputs=inputs,
                        targets=targets,
                    )
                )
                shown.advance()
            for node in group:
                fake_quantized[node] = [
                    _run(node, graph.root, fake_quantized, b, x) for b, x in enumerate(batches)
                ]
            for node in group:
                for used in node.all_input_nodes:
                    readers[used] -= 1
                    if not readers[used]:
                        del plain[used], fake_quantized[used]


@contextmanager
def fake_quantizing(graph: QuantizedGraph) -> Iterator[None]:
    """Make every quantizer fake-quantize, and none observe, in the body."""
    with in_phase(graph.quantizers, Phase.FROZEN):
        yield


def float_copy(root: nn.Module) -> nn.Module:
    """Return a copy of the model as it is now, with all quantizers off."""
    twin = copy.deepcopy(root)
    twin.eval()  # Not chained: a detector that distills has its own train(), which returns None.
    set_phase(twin, Phase.OFF)
    return twin


def _run(
    node: fx.Node, root: nn.Module, values: dict[fx.Node, list[Any]], batch: int, x: Given
) -> Any:
    return computed(root, node, lambda used: values[used][batch], x)


def _groups(graph: QuantizedGraph) -> Iterator[list[fx.Node]]:
    """Yield all nodes in an order of execution, with the calls of one quantized layer together."""
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        if isinstance(module_of(graph.root, node), QuantizedLayer):
            calls.setdefault(str(node.target), []).append(node)
    waiting = list(graph.graph.nodes)
    done: set[fx.Node] = set()

    def ready(node: fx.Node) -> bool:
        return all(n in done for n in node.all_input_nodes)

    while waiting:
        progress = False
        for node in waiting:
            if node in done or not ready(node):
                continue
            siblings = [n for n in calls.get(str(node.target), [node]) if n not in done]
            siblings = siblings if node.op == "call_module" else [node]
            if all(ready(n) for n in siblings):
                yield siblings
                done.update(siblings)
                progress = True
        if not progress:
            # A layer that feeds itself: take only the first call.
            node = next(n for n in waiting if n not in done and ready(n))
            yield [node]
            done.add(node)
        waiting = [n for n in waiting if n not in done]
