"""Bias correction: take the mean error that rounding causes out of each layer's bias.

Rounding a weight shifts the mean of what a layer gives, channel by channel, and the shifts add up
from layer to layer. After Nagel et al. 2019 (arXiv 1906.04721, section 4.2), in the empirical form:
the shift is what the rounded weight makes of the layer's real input on calibration images, with all
that comes before already rounded. Errors of the input itself are left alone: those of a clipped
activation sit in few places, and taking their mean out of the bias would spread them over all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.ptq.layer_walk import Stop, walk

log = logging.getLogger(__name__)


def correct_bias_(graph: QuantizedGraph, batches: Sequence[Tensor]) -> int:
    """Correct the bias of every layer that has one, or whose batch norm has one, in place.

    Args:
        graph: Prepared, with ranges, in evaluation mode.
        batches: Images on the model's device.

    Returns:
        How many layers were corrected.
    """
    corrected = 0

    def visit(stop: Stop) -> None:
        nonlocal corrected
        corrected += correct_layer_(stop, stop.unrounded())

    walk(graph, batches, visit)
    log.info("bias correction of %d layers", corrected)
    return corrected


@torch.no_grad()
def correct_layer_(stop: Stop, wanted: Iterable[Tensor]) -> bool:
    """Take the mean error of the layer's output out of its bias.

    Args:
        stop: The layer.
        wanted: What it ought to give for each of its inputs.

    Returns:
        Whether there is a bias; without one nothing is done.
    """
    bias = bias_of(stop)
    if bias is None:
        return False
    total = torch.zeros_like(bias, dtype=torch.float64)
    count = 0
    for target, output in zip(wanted, stop.outputs(), strict=True):
        difference = channels_last(target - output, stop.layer).double()
        total += difference.sum(0)
        count += len(difference)
    bias += (total / max(count, 1)).to(bias.dtype)
    return True


def bias_of(stop: Stop) -> Tensor | None:
    """Return the parameter that is added, as it is, to what the rounded layer gives."""
    owner = stop.layer if stop.norm is None else stop.norm
    bias = owner.bias
    assert bias is None or isinstance(bias, Tensor)
    return bias


def channels_last(x: Tensor, layer: nn.Module) -> Tensor:
    """Return a layer's output as ``(positions, channels)``."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    return x.transpose(0, 1).flatten(1).t()
