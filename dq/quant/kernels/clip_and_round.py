"""An activation function and the rounding behind it as one step of the backward pass.

For devices and dtypes that the native kernels do not take, made of torch's operators. Each of the
two apart would keep something: the activation function its result, four bytes a value, the rounding
a byte that says where gradients pass. Together one byte says both, and the gradient takes one pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dq.quant.kernels.rounding import Clip
from dq.quant.numerics.spec import QuantSpec


def round_clipped(
    x: Tensor, clipped: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec, clip: Clip
) -> Tensor:
    """Round the result of an activation function that only cuts off, with its gradient.

    Args:
        x: What the activation function was given, any shape and floating dtype.
        clipped: Its result, computed without gradient.
        scale: Float32 ``()``.
        zero_point: Int32 ``()``.
        spec: The integers; per tensor.
        clip: Lowest and highest value let through; the ends themselves get no gradient.

    Returns:
        A tensor of the shape and dtype of ``x``, as `dq.quant.numerics.affine.fake_quantize` of
        ``clipped``.
    """
    result: Tensor = _Rounding.apply(x, clipped, scale, zero_point, spec, clip)
    return result


class _Rounding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        clipped: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        spec: QuantSpec,
        clip: Clip,
    ) -> Tensor:
        enabled = torch.ones(1, dtype=torch.long, device=x.device)
        result, mask = torch._fake_quantize_per_tensor_affine_cachemask_tensor_qparams(
            clipped, scale, zero_point, enabled, spec.quant_min, spec.quant_max
        )
        # As torch's own gradients: a NaN passes the activation function, not the rounding.
        low, high = clip
        if low > -torch.inf:
            mask.logical_and_((x <= low).logical_not_())
        if high < torch.inf:
            mask.logical_and_((x >= high).logical_not_())
        ctx.save_for_backward(mask)
        rounded: Tensor = result
        return rounded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (mask,) = ctx.saved_tensors
        return (gradients[0] * mask, *[None] * 5)
