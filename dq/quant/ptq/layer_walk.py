"""Run a prepared graph twice at once, in float and rounded, and stop at every layer.

One pass over the graph carries all images' tensors from node to node. So a repair sees of each
layer what comes in and what ought to come out, after everything before it has been repaired, and
nothing is computed twice. A tensor is dropped when its last reader has run.
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

from dq.quant.graph.quantized_graph import CONTAINER, QuantizedGraph, Site
from dq.quant.graph.roles import module_of
from dq.quant.quantizers.layers import QuantizedLayer
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.quantizers.restore import in_phase


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """A layer, with norm, that is about to be computed in the rounded run.

    Attributes:
        site: Of its weight.
        quantized: Computes it.
        layer: The float layer, to be repaired in place.
        norm: The folded batch norm, or None.
        inputs: What comes in when everything before is rounded; one tensor for each batch of
            images and each call of the layer.
        targets: What the float model gives there; as long as ``inputs``.
    """

    site: Site
    quantized: QuantizedLayer
    layer: nn.Module
    norm: nn.Module | None
    inputs: list[Tensor]
    targets: list[Tensor]

    def outputs(self) -> Iterator[Tensor]:
        """Yield what the rounded layer gives at present for each of the inputs."""
        for x in self.inputs:
            yield self.quantized(x, self.layer, self.norm)

    def unrounded(self) -> Iterator[Tensor]:
        """Yield what the layer gives for each of the inputs with its weight not rounded."""
        weight = self.quantized.weight
        for x in self.inputs:
            with in_phase(weight, Phase.OFF):
                y = self.quantized(x, self.layer, self.norm)
            yield y


@torch.no_grad()
def walk(graph: QuantizedGraph, batches: Sequence[Tensor], visit: Callable[[Stop], None]) -> None:
    """Call ``visit`` for every quantized layer, in the order of execution.

    All calls of a shared layer make one stop where the graph allows it.

    Args:
        graph: Prepared, with ranges, in evaluation mode; phases are put back afterwards.
        batches: Images ``(N, 3, H, W)`` on the model's device.
        visit: May change the layer's parameters.
    """
    reference = _float_twin(graph.root)
    layers = {f"{CONTAINER}.{entry[0].name}": entry for entry in graph.layers()}
    readers = Counter(n for node in graph.graph.nodes for n in node.all_input_nodes)
    plain: dict[fx.Node, list[Any]] = {}
    rounded: dict[fx.Node, list[Any]] = {}
    with rounding(graph):
        for group in _groups(graph):
            inputs: list[Tensor] = []
            targets: list[Tensor] = []
            for node in group:
                plain[node] = [_run(node, reference, plain, b, x) for b, x in enumerate(batches)]
                if node.op == "call_module" and node.target in layers:
                    first = node.args[0]
                    assert isinstance(first, fx.Node)
                    inputs += rounded[first]
                    targets += plain[node]
            if inputs:
                site, quantized, layer, norm = layers[str(group[0].target)]
                visit(
                    Stop(
                        site=site,
                        quantized=quantized,
                        layer=layer,
                        norm=norm,
                        inputs=inputs,
                        targets=targets,
                    )
                )
            for node in group:
                rounded[node] = [
                    _run(node, graph.root, rounded, b, x) for b, x in enumerate(batches)
                ]
            for node in group:
                for used in node.all_input_nodes:
                    readers[used] -= 1
                    if not readers[used]:
                        del plain[used], rounded[used]


@contextmanager
def rounding(graph: QuantizedGraph) -> Iterator[None]:
    """Let every quantizer round and none observe inside the block."""
    with in_phase(graph.quantizers, Phase.FROZEN):
        yield


def _float_twin(root: nn.Module) -> nn.Module:
    """Return a copy of the model that stays as it is now and rounds nothing."""
    twin = copy.deepcopy(root)
    twin.eval()  # A detector's own, that of distillation, returns nothing.
    set_phase(twin, Phase.OFF)
    return twin


def _run(
    node: fx.Node, root: nn.Module, values: dict[fx.Node, list[Any]], batch: int, x: Tensor
) -> Any:
    if node.op == "placeholder":
        return x

    def value(used: fx.Node) -> Any:
        return values[used][batch]

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


def _groups(graph: QuantizedGraph) -> Iterator[list[fx.Node]]:
    """Yield all nodes in an order of execution, the calls of one quantized layer together."""
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
            # A layer that feeds itself: take the first call alone.
            node = next(n for n in waiting if n not in done and ready(n))
            yield [node]
            done.add(node)
        waiting = [n for n in waiting if n not in done]
