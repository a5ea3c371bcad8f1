"""Calibrate a prepared detector: run images through it and keep the ranges that were seen."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dq.detector.graph import features_of
from dq.detector.roi_heads import run_roi_heads
from dq.quant.fake_quantize import update_scales_
from dq.quant.observer import MovingAverageObserver
from dq.quant.phase import Phase, set_phase
from dq.quant.prepare import QuantizedGraph

log = logging.getLogger(__name__)


@torch.no_grad()
def calibrate(
    detector: nn.Module, graph: QuantizedGraph, batches: Iterable[Tensor], device: torch.device
) -> int:
    """Observe every tensor over these images and leave the quantizers FROZEN with their ranges.

    One process's work. No gradients, batch norms in evaluation mode, nothing rounded meanwhile,
    so every range is that of the float model. Moving averages weigh all batches alike.

    Args:
        detector: Prepared, on ``device``.
        graph: Its graph.
        batches: Images ``(N, 3, H, W)``.
        device: Where the detector is.

    Returns:
        How many images were seen.

    Raises:
        ValueError: There were no images, or a quantizer has no range afterwards.
    """
    detector.eval()
    quantizers = graph.activations()
    averages = [
        q.observer for q in quantizers.values() if isinstance(q.observer, MovingAverageObserver)
    ]
    momenta = [observer.momentum for observer in averages]
    set_phase(graph.quantizers, Phase.CALIBRATE)
    images, began = 0, time.monotonic()
    for number, batch in enumerate(batches, start=1):
        for observer in averages:
            observer.momentum = 1.0 / number
        result = graph(batch.to(device))
        if graph.parts:
            run_roi_heads(detector, features_of(result), batch.to(device))
        update_scales_(list(quantizers.values()))
        images += len(batch)
    for observer, momentum in zip(averages, momenta, strict=True):
        observer.momentum = momentum
    if not images:
        raise ValueError("there is no image to calibrate with; data.train is empty")
    without = [name for name, quantizer in quantizers.items() if not quantizer.has_range]
    if without:
        raise ValueError(
            f"{len(without)} quantizers have no finite range after calibration (first"
            f" {without[0]}); the float model yields NaN or infinity there"
        )
    set_phase(graph.quantizers, Phase.FROZEN)
    log.info(
        "calibrated %d quantizers on %d images in %.0f s",
        len(quantizers),
        images,
        time.monotonic() - began,
    )
    return images
