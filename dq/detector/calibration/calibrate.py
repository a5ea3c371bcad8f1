"""Calibrate a prepared detector, RoI heads included."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dq.detector.model.graph import features_of
from dq.detector.model.roi_heads import run_roi_heads
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.ptq.calibration import calibrate_
from dq.quant.ptq.repairs import calibrate_and_repair_
from dq.quant.ptq.settings import Repair


def calibrate_and_repair(
    detector: nn.Module,
    graph: QuantizedGraph,
    batches: Iterable[Tensor],
    device: torch.device,
    *,
    weight_range: str = "min_max",
    repair: Repair | None = None,
) -> tuple[str, ...]:
    """Calibrate, with all repairs that are asked for; leave the quantizers FROZEN.

    Args:
        detector: Prepared, on ``device``.
        graph: Its graph.
        batches: Images ``(N, C, H, W)``; the first ones serve the repairs too.
        device: Where the detector is.
        weight_range: As in `dq.quant.recipes.recipe.Recipe`.
        repair: What to repair; None for nothing.

    Returns:
        Names of the quantizers that mixed precision raised.

    Raises:
        ValueError: As `dq.quant.ptq.calibration.calibrate_`.
    """
    return calibrate_and_repair_(
        graph,
        batches,
        lambda batch: run_network(detector, graph, batch.to(device)),
        device,
        weight_range=weight_range,
        repair=repair,
    )


def calibrate(
    detector: nn.Module, graph: QuantizedGraph, batches: Iterable[Tensor], device: torch.device
) -> int:
    """Observe every tensor over these images, see `dq.quant.ptq.calibration.calibrate_`.

    Args:
        detector: Prepared, on ``device``.
        graph: Its graph.
        batches: Images ``(N, C, H, W)``.
        device: Where the detector is.

    Returns:
        How many images were seen.
    """
    return calibrate_(graph, batches, lambda b: run_network(detector, graph, b.to(device)))


def run_network(detector: nn.Module, graph: QuantizedGraph, batch: Tensor) -> int:
    """Run all of a prepared detector's graphs on a batch, RoI heads included; return its size."""
    result = graph(batch)
    if graph.parts:
        run_roi_heads(detector, features_of(result), batch)
    return len(batch)
