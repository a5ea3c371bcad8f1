"""Make biases fit the 32 bits in which integer engines store them.

An engine adds the bias to a sum of integer products, so the bias is quantized with the product of
the input's and the weight's scale. If both are tiny (a channel switched off by its batch norm,
activations near zero, 16 bits of both), that integer overflows and the engine's result is wrong. A
coarser scale for such a weight fixes it. Next to such a large bias the rounding error of the
products is negligible.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, fx

from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.graph.roles import module_of, tensor_inputs
from dq.quant.integer.convert import integer_network, quantizer_of_node
from dq.quant.integer.modules import IntegerLayer, IntegerWeight

log = logging.getLogger(__name__)

# Half of the range of 32 bits; the other half is for the sum of products. ONNX Runtime rounds the
# bias to 32 bits for all bit widths, also in layers that it computes in float.
LARGEST_BIAS = 2.0**30


def network_for_engines(graph: QuantizedGraph) -> fx.GraphModule:
    """Return a graph's integer network, with biases that fit into 32 bits.

    Args:
        graph: With ranges; it is not changed.

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

    Scales are multiplied by the smallest sufficient power of two.

    Args:
        network: Result of `dq.quant.integer.convert.integer_network`.
    """
    changed: dict[str, None] = {}
    for node in network.graph.nodes:
        layer = module_of(network, node)
        if not isinstance(layer, IntegerLayer) or layer.bias is None:
            continue
        source = quantizer_of_node(network, tensor_inputs(node)[0])
        weight = layer.weight
        if source is None:
            continue
        largest = _largest_bias(layer)
        excess = largest / (LARGEST_BIAS * source.scale.double() * weight.scale.double())
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
    """Multiply the weight's scales by powers of two and requantize its integers."""
    axis = weight.spec.channel_axis
    shape = [1] * weight.integers.dim()
    if axis is not None:
        shape[axis] = -1
    shift = weight.zero_point.double().reshape(shape)
    integers = (weight.integers.double() - shift) / factor.reshape(shape)
    weight.integers.copy_((integers.round() + shift).to(weight.integers.dtype))
    weight.scale.mul_(factor.float())
