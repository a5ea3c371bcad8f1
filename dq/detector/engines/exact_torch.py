"""Run a quantized detector in torch with the exact results of an integer engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from dq.detector.model.graph import attach_all
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.integer.engine.graph import exact_network


def run_exactly_(
    detector: nn.Module,
    graph: QuantizedGraph,
    around: Callable[[Callable[[Tensor], Any]], Callable[[Tensor], Any]] | None = None,
) -> None:
    """Make the detector run network and RoI heads with the integers of its graph.

    Args:
        detector: On the CPU, in evaluation mode.
        graph: The detector's graph, with ranges.
        around: Wraps the network, for example to pad images.
    """
    networks = {part: exact_network(own) for part, own in {"": graph, **graph.parts}.items()}
    if around is not None:
        networks[""] = around(networks[""])
    attach_all(detector, networks)


@contextlib.contextmanager
def exact_arithmetic(detector: nn.Module, graph: QuantizedGraph) -> Iterator[None]:
    """Apply `run_exactly_` inside the block, and restore the detector after it."""
    # The methods as they are now: calls of the graph, which may be compiled or under autocast.
    owners = [("extract_feat", detector)]
    owners += [("forward", detector.get_submodule(part)) for part in graph.parts]
    before = [owner.__dict__[name] for name, owner in owners]
    run_exactly_(detector, graph)
    try:
        yield
    finally:
        for (name, owner), method in zip(owners, before, strict=True):
            owner.__dict__[name] = method
