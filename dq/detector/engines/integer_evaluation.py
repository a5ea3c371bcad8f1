"""Evaluate a torch-int file, and compare it with the fake-quantized detector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmcv import Config
from torch import fx, nn

from dq.counted import counted
from dq.detector.engines.agreement import Agreement, evaluate_both
from dq.detector.engines.exact_torch import run_exactly_
from dq.detector.engines.integer_file import run_integers_
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.integer.serialize import num_bytes


def evaluate_integers(
    config: Config,
    detector: nn.Module,
    graph: QuantizedGraph,
    networks: Mapping[str, fx.GraphModule],
    differing: list[str],
) -> Agreement:
    """Evaluate a file of integers and its checkpoint on ``data.test``, over all ranks.

    Every rank must call it; all get the same result.

    Args:
        config: Result of `dq.detector.config.read.finish`.
        detector: The checkpoint's detector, on the CPU; its methods are changed in place.
        graph: The detector's quantized graph, with frozen ranges.
        networks: From `dq.detector.engines.integer_file.load_networks`.
        differing: Names of the file's tensors that differ from an export of the checkpoint.
    """
    sizes = [num_bytes(network) for network in networks.values()]

    def conclude(_: Any, found: Agreement) -> Agreement:
        return found if found.passed else replace(found, cause=_cause(differing))

    return evaluate_both(
        config,
        detector,
        lambda: run_exactly_(detector, graph),
        lambda: run_integers_(detector, networks),
        (sum(own for own, _ in sizes), sum(plain for _, plain in sizes)),
        conclude,
    )


def _cause(differing: list[str]) -> str:
    if not differing:
        return "the file has the integers of the checkpoint, so rounding ties add up"
    named = ", ".join(differing[:3])
    number = counted(len(differing), "tensor[s] of the file [differs|differ]")
    return f"{number} from the checkpoint's: {named}"
