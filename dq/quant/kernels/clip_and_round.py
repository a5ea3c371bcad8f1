"""Clip and fake-quantize in one autograd function, made of torch's operators.

For devices and dtypes that the native kernels do not support. As two functions, each would save
something for the backward pass: the clip its result (four bytes per value), the fake quantization
its gradient mask (one byte). Together they save one mask, applied in one pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dq.quant.kernels.rounding import Clip
from dq.quant.numerics.spec import QuantSpec


def fake_quantize_clipped(
    x: Tensor, clipped: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec, clip: Clip
) -> Tensor:
    """Fake-quantize the result of a clipping activation function, with the gradient of both.

    Args:
        x: Input of the activation function, any shape and floating dtype.
        clipped: Its result, computed without gradient.
        scale: Float32 ``()``.
        zero_point: Int32 ``()``.
        spec: The integer format; per tensor.
        clip: The bounds of the activation function. Values at a bound get no gradient.

    Returns:
        A tensor of the shape and dtype of ``x``: `dq.quant.numerics.affine.fake_quantize` of
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
        # Same as torch's gradients: a NaN passes the clip but not the fake quantization.
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
