"""Calibrate a prepared detector, including RoI heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dq.detector.model.graph import features_of
from dq.detector.model.roi_heads import run_roi_heads
from dq.quant.analysis.sensitivity import Calls
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.ptq.calibration import calibrate_
from dq.quant.ptq.parts import part_inputs
from dq.quant.ptq.repairs import Calibration
from dq.quant.ptq.settings import Repair


@dataclass(frozen=True, slots=True, kw_only=True)
class RoiHeads:
    """Runs a prepared detector in two steps, for `dq.quant.ptq.parts`.

    Attributes:
        detector: Prepared, in evaluation mode.
        graph: Its graph.
    """

    detector: nn.Module
    graph: QuantizedGraph

    def features(self, images: Tensor) -> Any:
        """Return the detector's features, with the outputs of the first stage."""
        return features_of(self.graph(images))

    def run(self, features: Any, images: Tensor, boxes: Any = None) -> Any:
        """Run all RoI heads on these boxes, or on the proposals if None; return their boxes."""
        return run_roi_heads(self.detector, features, images, boxes)


def calls_of_roi_heads(
    detector: nn.Module, graph: QuantizedGraph, images: Sequence[Tensor]
) -> Calls:
    """Return the float inputs of each RoI head that gets boxes, for sensitivities.

    Args:
        detector: Prepared, on the device of the images.
        graph: Its graph.
        images: Batches ``(N, C, H, W)``.
    """
    if not graph.parts:
        return {}
    graph.root.eval()
    found = part_inputs(graph, RoiHeads(detector=detector, graph=graph), images).plain
    return {part: calls for part, calls in found.items() if calls}


def calibration_of(
    detector: nn.Module,
    graph: QuantizedGraph,
    device: torch.device,
    *,
    weight_range: str = "min_max",
    repair: Repair | None = None,
) -> Calibration:
    """Return the calibration of a prepared detector, in steps.

    Args:
        detector: Prepared, on ``device``.
        graph: Its graph.
        device: Device of the detector.
        weight_range: As in `dq.quant.recipes.recipe.Recipe`.
        repair: Which repairs to apply; None for none.
    """
    return Calibration(
        graph,
        lambda batch: run_network(detector, graph, batch.to(device)),
        device,
        weight_range=weight_range,
        repair=repair,
        parts=RoiHeads(detector=detector, graph=graph),
    )


def calibrate(
    detector: nn.Module, graph: QuantizedGraph, batches: Iterable[Tensor], device: torch.device
) -> int:
    """Observe every tensor over these images, see `dq.quant.ptq.calibration.calibrate_`.

    Args:
        detector: Prepared, on ``device``.
        graph: Its graph.
        batches: Images ``(N, C, H, W)``.
        device: Device of the detector.

    Returns:
        The number of images.
    """
    return calibrate_(graph, batches, lambda b: run_network(detector, graph, b.to(device)))


def run_network(detector: nn.Module, graph: QuantizedGraph, batch: Tensor) -> int:
    """Run all graphs of a prepared detector, including RoI heads; return the number of images."""
    result = graph(batch)
    if graph.parts:
        run_roi_heads(detector, features_of(result), batch)
    return len(batch)
