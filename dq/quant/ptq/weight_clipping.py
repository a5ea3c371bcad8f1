"""Clip each weight if that reduces its squared quantization error.

A range narrower than the weight's extremes quantizes the many small weights more finely but clips
the few large ones; at 4 bits that pays. The clipped values are written into the float weight, so
its extremes are the range. No extra state is needed, and quantization itself does not change.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from dq.counted import counted
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.numerics.shrunk_range import best_shrunk_range
from dq.quant.numerics.spec import QuantSpec
from dq.quant.quantizers.batch_norm_fold import fold_factor, unfold
from dq.quant.quantizers.layers import spread_over_weight

log = logging.getLogger(__name__)

SHARES = tuple(1 - k / 100 for k in range(0, 81, 2))
# Clipping changes the weight for good, so an equal error does not pay for it.
REQUIRED_GAIN = 1e-6


def best_weight_range(weight: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Return the range of least squared quantization error, per channel or per tensor.

    Args:
        weight: Folded weight, any shape.
        spec: Its integer format.

    Returns:
        Two tensors of shape ``()`` or ``(channels,)``.
    """
    return best_shrunk_range(weight, spec, SHARES, required_gain=REQUIRED_GAIN)


@torch.no_grad()
def clip_weights_(graph: QuantizedGraph) -> dict[str, Tensor]:
    """Clip every quantized weight to its best range.

    Args:
        graph: Prepared. A weight with several norms is left alone.

    Returns:
        The former values of the changed weights, by quantizer name.
    """
    owners = [site.module for site in graph.sites if site.kind == "weight"]
    changed: dict[str, Tensor] = {}
    for site, quantized, layer, norm in graph.layers():
        if owners.count(site.module) > 1:
            continue
        spec = quantized.weight.spec
        folded, _ = quantized.folded(layer, norm)
        low, high = best_weight_range(folded, spec)
        if spec.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        shape = [1] * folded.dim()
        if spec.channel_axis is not None:
            shape[spec.channel_axis] = -1
        clipped = folded.clamp(low.reshape(shape), high.reshape(shape))
        if torch.equal(clipped, folded):
            continue
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if norm is not None:
            assert isinstance(norm, _BatchNorm)
            clipped = unfold(clipped, weight, spread_over_weight(layer, fold_factor(norm)))
        changed[site.name] = weight.clone()
        weight.copy_(clipped)
    log.info("clipped the weights of %s", counted(len(changed), "layer[s]"))
    return changed


@torch.no_grad()
def restore_weights_(graph: QuantizedGraph, weights: Mapping[str, Tensor]) -> None:
    """Restore the weights that `clip_weights_` returned, by quantizer name."""
    for site, _, layer, _ in graph.layers():
        if site.name in weights:
            weight = layer.weight
            assert isinstance(weight, Tensor)
            weight.copy_(weights[site.name])
