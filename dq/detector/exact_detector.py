"""A quantized detector that computes in torch what an integer engine computes, to the last bit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from dq.detector.graph import attach
from dq.quant.exact_graph import exact_network
from dq.quant.quantized_graph import QuantizedGraph


def run_exactly_(
    detector: nn.Module,
    graph: QuantizedGraph,
    around: Callable[[Callable[[Tensor], Any]], Callable[[Tensor], Any]] | None = None,
) -> None:
    """Let the detector take network and RoI heads from the integers of its graph.

    Args:
        detector: On the CPU, in evaluation mode.
        graph: Its own, with ranges.
        around: Wraps the network, to pad images say.
    """
    network = exact_network(graph)
    attach(detector, network if around is None else around(network))
    for part, own in graph.parts.items():
        detector.get_submodule(part).__dict__["forward"] = exact_network(own)


@contextlib.contextmanager
def exact_arithmetic(detector: nn.Module, graph: QuantizedGraph) -> Iterator[None]:
    """Let the detector compute as `run_exactly_` says inside the block, then as before."""
    # What stood in for the class's methods: the graph, compiled or in autocast perhaps.
    owners = [("extract_feat", detector)]
    owners += [("forward", detector.get_submodule(part)) for part in graph.parts]
    before = [owner.__dict__[name] for name, owner in owners]
    run_exactly_(detector, graph)
    try:
        yield
    finally:
        for (name, owner), method in zip(owners, before, strict=True):
            owner.__dict__[name] = method
