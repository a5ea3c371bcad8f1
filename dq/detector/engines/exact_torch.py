"""A quantized detector that computes in torch what an integer engine computes, to the last bit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from dq.detector.model.graph import attach_all
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.integer.engine_graph import exact_network


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
    networks = {part: exact_network(own) for part, own in {"": graph, **graph.parts}.items()}
    if around is not None:
        networks[""] = around(networks[""])
    attach_all(detector, networks)


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
