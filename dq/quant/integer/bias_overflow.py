"""Biases that fit the 32 bits in which integer engines keep them.

An engine adds the bias to a sum of products of integers, so it rounds the bias to the product of
the input's and the weight's scale. Where both have vanished (a channel that a batch norm has
switched off, activations that are almost zero) that number does not fit, and the engine's result
is wrong. A coarser scale for such a weight mends it: beside so large a bias its products are so
small that their rounding does not show.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, fx

from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.graph.roles import module_of, tensor_inputs
from dq.quant.integer.convert import integer_network, rounding_of
from dq.quant.integer.modules import IntegerLayer, IntegerWeight

log = logging.getLogger(__name__)

# Half of what 32 bits hold; the rest is for the sum of products.
LARGEST_BIAS = 2.0**30
# Engines sum products of wider integers in 64 bits.
_WIDEST = 16


def network_for_engines(graph: QuantizedGraph) -> fx.GraphModule:
    """Return a graph's integer network, its biases within 32 bits.

    Args:
        graph: With its ranges; unchanged.

    Raises:
        ValueError: As `dq.quant.integer.convert.integer_network`.
    """
    network = integer_network(graph)
    if coarser := fit_biases_(network):
        log.warning(
            "%s: weights have coarser scales in the exported model, so that the bias fits 32 bits",
            ", ".join(coarser),
        )
    return network


@torch.no_grad()
def fit_biases_(network: fx.GraphModule) -> list[str]:
    """Raise the scales of weights whose layer's bias would overflow; return the layers' names.

    Scales grow by powers of two, no more than needed.

    Args:
        network: As `dq.quant.integer.convert.integer_network` returns it.
    """
    changed: dict[str, None] = {}
    for node in network.graph.nodes:
        layer = module_of(network, node)
        if not isinstance(layer, IntegerLayer) or layer.bias is None:
            continue
        rounding = rounding_of(network, tensor_inputs(node)[0])
        weight = layer.weight
        if rounding is None or rounding.spec.bits + weight.spec.bits > _WIDEST:
            continue
        largest = _largest_bias(layer)
        excess = largest / (LARGEST_BIAS * rounding.scale.double() * weight.scale.double())
        if bool((excess > 1).any()):
            _coarsen_(weight, 2.0 ** excess.clamp(min=1).log2().ceil())
            changed[weight.site] = None
    return list(changed)


def _largest_bias(layer: IntegerLayer) -> Tensor:
    """Return the largest bias, float64, for each scale of the layer's weight."""
    assert layer.bias is not None
    bias = layer.bias.double().abs()
    scale = layer.weight.scale
    # A grouped transposed convolution has one scale for the same channel of every group.
    return bias.max() if scale.dim() == 0 else bias.reshape(-1, len(scale)).amax(0)


def _coarsen_(weight: IntegerWeight, factor: Tensor) -> None:
    """Multiply the weight's scales by powers of two and round its integers to them."""
    axis = weight.spec.channel_axis
    shape = [1] * weight.integers.dim()
    if axis is not None:
        shape[axis] = -1
    shift = weight.zero_point.double().reshape(shape)
    integers = (weight.integers.double() - shift) / factor.reshape(shape)
    weight.integers.copy_((integers.round() + shift).to(weight.integers.dtype))
    weight.scale.mul_(factor.float())
