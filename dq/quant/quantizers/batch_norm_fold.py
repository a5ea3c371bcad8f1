"""Batch norm folded into the layer before it, for training and for inference.

In inference a batch norm is a factor and a shift per channel, which are folded into the layer:
``weight * factor`` and ``(bias - mean) * factor + beta``. In training, the folded weight must be
fake-quantized while the norm still normalises by the batch. As in Krishnamoorthi 2018 (arXiv
1806.08342, section 3.2.2) the folded weight is fake-quantized. Here it is then divided by the same
factor again: that is equal to dividing the layer's output, but cheaper. The norm module itself does
the rest. So without fake quantization, the result, the gradients and the running statistics are
those of the unfused model, and the norm may be any subclass (SyncBatchNorm).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# With a smaller factor a channel is dead: dividing by the factor would give infinities.
SMALLEST_FACTOR = 1e-12


def is_foldable(norm: nn.Module) -> bool:
    """Say whether ``norm`` is a batch norm with running statistics."""
    return isinstance(norm, _BatchNorm) and norm.track_running_stats


@torch.library.custom_op("dq::snapshot", mutates_args=())
def snapshot(x: Tensor) -> Tensor:
    """Return a copy of ``x`` that torch.compile keeps for the backward pass.

    Otherwise torch.compile recomputes the factor there, from running statistics that the batch norm
    has updated in the meantime. The gradients would be wrong (torch 2.14, aot_eager and inductor).
    """
    return x.clone()


@snapshot.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def fold_factor(norm: _BatchNorm) -> Tensor:
    """Return ``gamma / sqrt(running_var + eps)``, shape ``(channels,)``.

    The gradient goes to gamma, not to the running statistics.
    """
    assert norm.running_var is not None
    variance = norm.running_var
    if norm.training and torch.compiler.is_compiling():
        variance = snapshot(variance)
    inverse = torch.rsqrt(variance + norm.eps)
    return inverse if norm.weight is None else norm.weight * inverse


def unfold(rounded: Tensor, weight: Tensor, spread: Tensor) -> Tensor:
    """Return the fake-quantized folded weight divided by the fold factor.

    A dead channel, whose factor is close to zero, keeps its float weight. All integers of its
    folded weight are zero, which would freeze its statistics and the gradient of its gamma.

    Args:
        rounded: The fake-quantized folded weight.
        weight: The float weight, of the same shape.
        spread: The factor, in a shape that broadcasts against the weight.
    """
    dead = spread.abs() < SMALLEST_FACTOR
    return torch.where(dead, weight, rounded / torch.where(dead, 1.0, spread))


def folded_bias(bias: Tensor | None, norm: _BatchNorm, factor: Tensor) -> Tensor:
    """Return the bias of the folded layer, shape ``(channels,)``."""
    assert norm.running_mean is not None
    shift = -norm.running_mean if bias is None else bias - norm.running_mean
    folded = shift * factor
    return folded if norm.bias is None else folded + norm.bias
