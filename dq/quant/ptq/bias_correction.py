"""Bias correction: subtract the mean error of quantization from each layer's bias.

Quantizing a weight shifts the mean of the layer's output, channel by channel, and the shifts add up
from layer to layer. After Nagel et al. 2019 (arXiv 1906.04721, section 4.2), in the empirical form:
the shift is measured on calibration images, with all earlier layers already quantized. Errors of
the layer's input are not corrected. Those of a clipped activation occur in few places, and a bias
would spread their mean over all places.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from dq.counted import counted
from dq.quant.graph.nodes import Given
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.ptq.layer_walk import CapturedLayer, walk
from dq.quant.ptq.settings import RepairStep

log = logging.getLogger(__name__)


def correct_bias_(graph: QuantizedGraph, batches: Sequence[Given]) -> int:
    """Correct the bias of every layer that has one, or whose batch norm has one, in place.

    Args:
        graph: Prepared, with ranges, in evaluation mode.
        batches: Images on the model's device, or the inputs of a part.

    Returns:
        The number of corrected layers.
    """
    corrected = 0

    def visit(captured: CapturedLayer) -> None:
        nonlocal corrected
        corrected += correct_layer_(captured, captured.unquantized_outputs())

    walk(graph, batches, visit, "bias correction")
    log.info("bias correction of %s", counted(corrected, "layer[s]"))
    return corrected


@torch.no_grad()
def correct_layer_(captured: CapturedLayer, wanted: Iterable[Tensor]) -> bool:
    """Subtract the mean error of the layer's output from its bias.

    Args:
        captured: The layer.
        wanted: The target output for each of its inputs.

    Returns:
        Whether there is a bias; if not, nothing is done.
    """
    bias = bias_of(captured)
    if bias is None:
        return False
    total = torch.zeros_like(bias, dtype=torch.float64)
    count = 0
    for target, output in zip(wanted, captured.outputs(), strict=True):
        difference = channels_last(target - output, captured.layer).double()
        total += difference.sum(0)
        count += len(difference)
    bias += (total / max(count, 1)).to(bias.dtype)
    return True


def bias_of(captured: CapturedLayer) -> Tensor | None:
    """Return the parameter that is added, unchanged, to the quantized layer's output."""
    owner = captured.layer if captured.norm is None else captured.norm
    bias = owner.bias
    assert bias is None or isinstance(bias, Tensor)
    return bias


def channels_last(x: Tensor, layer: nn.Module) -> Tensor:
    """Return a layer's output as ``(positions, channels)``."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    return x.transpose(0, 1).flatten(1).t()


REPAIR = RepairStep(
    apply=lambda graph, samples, settings: correct_bias_(graph, samples.rounded), in_parts=True
)
