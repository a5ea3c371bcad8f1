"""Bias correction: subtract the mean error of quantization from each layer's bias.

Quantizing a weight shifts the mean of the layer's output, channel by channel, and the shifts add up
from layer to layer. After Nagel et al. 2019 (arXiv 1906.04721, section 4.2), in the empirical form:
the shift is measured on calibration images, with fake-quantized inputs. Errors of the layer's input
are not corrected. Those of a clipped activation occur in few places, and a bias would spread their
mean over all places.

A layer is linear in its input. So the mean error over many images is the error on their mean, and
it is enough to add up the inputs of all layers in one pass over the images. A second pass measures
the shifts again, now that the earlier layers are corrected. On YOLOX-Nano with 4-bit weights the
second pass gives 0.4 to 0.5 dB, and a third one at most 0.1.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dq.counted import counted
from dq.progress import progress
from dq.quant.graph.nodes import Given, as_tuple
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.ptq.layer_walk import CapturedLayer, fake_quantizing
from dq.quant.ptq.settings import RepairStep
from dq.quant.quantizers.layers import QuantizedLayer
from dq.quant.quantizers.phase import Phase
from dq.quant.quantizers.restore import in_phase, watching_inputs

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """All inputs of one shape of a layer.

    Attributes:
        total: Their sum, with a first dimension of one, in float32 at least.
        count: How many there were.
        dtype: Their own.
    """

    total: Tensor
    count: int
    dtype: torch.dtype

    @property
    def mean(self) -> Tensor:
        """Their mean, as one more input."""
        return (self.total / self.count).to(self.dtype)


# Passes over the images.
PASSES = 2
# Each image adds all positions of a layer's output to the means; more images hardly change them.
IMAGES = 32

# By layer and shape.
_Seen = dict[QuantizedLayer, dict[torch.Size, _Inputs]]


@torch.no_grad()
def correct_bias_(graph: QuantizedGraph, batches: Sequence[Given]) -> int:
    """Correct the bias of every layer that has one, or whose batch norm has one, in place.

    Args:
        graph: Prepared, with ranges, in evaluation mode.
        batches: Images on the model's device, or the inputs of a part.

    Returns:
        The number of corrected layers.
    """
    layers = {quantized: (layer, norm) for _, quantized, layer, norm in graph.layers()}
    originals: dict[QuantizedLayer, Tensor] = {}
    with fake_quantizing(graph):
        for _ in range(PASSES):
            with _adding_inputs(layers) as seen:
                for batch in progress(batches, "bias correction", "batch[es]"):
                    graph(*as_tuple(batch))
            for quantized, inputs in seen.items():
                layer, norm = layers[quantized]
                bias = _bias(layer, norm)
                if bias is not None:
                    error = _mean_error(quantized, layer, norm, list(inputs.values()))
                    original = originals.setdefault(quantized, bias.clone())
                    bias.copy_(original + error.to(bias.dtype))
    log.info("bias correction of %s", counted(len(originals), "layer[s]"))
    return len(originals)


@contextmanager
def _adding_inputs(layers: Iterable[QuantizedLayer]) -> Iterator[_Seen]:
    """Add up the inputs of each layer in the body, in all its calls."""
    seen: _Seen = {}

    def add(module: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(module, QuantizedLayer)
        x, layer = args[0], args[1]
        # A convolution may be called with one image, a linear layer with one row.
        dims = 2 if isinstance(layer, nn.Linear) else layer.weight.dim()
        x = x if x.dim() >= dims else x.unsqueeze(0)
        if not len(x):
            return
        total = x.sum(0, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        shapes = seen.setdefault(module, {})
        before = shapes.get(total.shape, _Inputs(torch.zeros_like(total), 0, x.dtype))
        shapes[total.shape] = _Inputs(before.total + total, before.count + len(x), x.dtype)

    with watching_inputs(dict.fromkeys(layers, add)):
        yield seen


def _mean_error(
    quantized: QuantizedLayer, layer: nn.Module, norm: nn.Module | None, inputs: Sequence[_Inputs]
) -> Tensor:
    """Return by how much the quantized weight lowers the mean of each output channel, float64."""
    total: Tensor | float = 0.0
    positions = 0
    for each in inputs:
        with in_phase(quantized.weight, Phase.OFF):
            wanted = quantized(each.mean, layer, norm)
        error = channels_last(wanted - quantized(each.mean, layer, norm), layer).double()
        total = total + error.sum(0) * each.count
        positions += len(error) * each.count
    assert isinstance(total, Tensor)
    return total / positions


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
    return _bias(captured.layer, captured.norm)


def _bias(layer: nn.Module, norm: nn.Module | None) -> Tensor | None:
    bias = (layer if norm is None else norm).bias
    assert bias is None or isinstance(bias, Tensor)
    return bias


def channels_last(x: Tensor, layer: nn.Module) -> Tensor:
    """Return a layer's output as ``(positions, channels)``."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    return x.transpose(0, 1).flatten(1).t()


REPAIR = RepairStep(
    apply=lambda graph, samples, settings: correct_bias_(graph, samples.rounded),
    most_images=IMAGES,
    in_parts=True,
)
