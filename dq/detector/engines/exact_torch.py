"""Run a quantized detector in torch with the exact results of an integer engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from dq.detector.instance_methods import replacements_kept
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
    # These methods are replaced already: by the graph, perhaps compiled or under autocast.
    parts = [(detector.get_submodule(part), "forward") for part in graph.parts]
    with replacements_kept([(detector, "extract_feat"), *parts]):
        run_exactly_(detector, graph)
        yield
