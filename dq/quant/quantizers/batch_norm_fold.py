"""Batch norm folded into the layer before it, for training and for inference.

In inference a batch norm is one factor and one shift for each channel, and both go into the layer:
``weight * factor`` and ``(bias - mean) * factor + beta``. In training the layer must round that
folded weight while the norm still normalises by the batch. As in Krishnamoorthi 2018 (arXiv
1806.08342, section 3.2.2) the folded weight is rounded; here it is then divided by the same factor
again, which commutes with the layer and is cheaper than dividing its output, and the norm module
itself does the rest. So with rounding off the result, the gradients and the running statistics are
the unfused model's, and the norm may be any subclass (SyncBatchNorm).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Below this a channel is dead; dividing by its factor would only produce infinities.
SMALLEST_FACTOR = 1e-12


def is_foldable(norm: nn.Module) -> bool:
    """Say whether ``norm`` is a batch norm with running statistics."""
    return isinstance(norm, _BatchNorm) and norm.track_running_stats


@torch.library.custom_op("dq::snapshot", mutates_args=())
def snapshot(x: Tensor) -> Tensor:
    """Return a copy of ``x`` that torch.compile keeps for the backward pass.

    It would otherwise compute the factor again there, from running statistics that the batch norm
    has moved on meanwhile, and the gradients would be wrong (torch 2.14, aot_eager and inductor).
    """
    return x.clone()


@snapshot.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def fold_factor(norm: _BatchNorm) -> Tensor:
    """Return ``gamma / sqrt(running_var + eps)``, shape ``(channels,)``.

    No gradient reaches the running statistics; one reaches gamma.
    """
    assert norm.running_var is not None
    variance = norm.running_var
    if norm.training and torch.compiler.is_compiling():
        variance = snapshot(variance)
    inverse = torch.rsqrt(variance + norm.eps)
    return inverse if norm.weight is None else norm.weight * inverse


def unfold(rounded: Tensor, weight: Tensor, spread: Tensor) -> Tensor:
    """Return the rounded folded weight divided by the factor that was folded in.

    A dead channel, whose factor is next to nothing, keeps its float weight: the integers of its
    folded weight are zero and would stop its statistics and the gradient of its gamma.

    Args:
        rounded: The rounded folded weight.
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
