"""Layers, sums and roundings computed as integer engines compute them, to the last bit.

An engine sums products of integers in 32 bits, adds the bias as an integer, multiplies once by
``x_scale * weight_scale / y_scale`` in float32 and rounds half to even (Jacob et al. 2018, arXiv
1712.05877, section 2.2; the float multiplier is ONNX Runtime's, onnxruntime/core/mlas/lib). Fake
quantization sums real numbers in float32 instead, whose last digits depend on the order: a value
beside a tie then falls the other way, and later layers follow. Here no sum is rounded, for integers
are added in a float type that holds them all.

Between modules values stay real numbers, integer times scale, so that whatever only moves them
(pooling, reshaping, concatenation) runs as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dq.quant.integer.modules import IntegerActivation, IntegerLayer
from dq.quant.numerics.spec import QuantSpec
from dq.quant.quantizers.layers import apply_layer

# Whole numbers up to it are exact in float32.
_FLOAT32_HOLDS = 2.0**24


class ExactRounding(nn.Module):
    """Round real numbers as ONNX's QuantizeLinear does: divide, round half to even, clamp.

    Args:
        rounding: Its scale, zero point and integers.
    """

    scale: Tensor
    zero_point: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, rounding: IntegerActivation) -> None:
        super().__init__()
        self.spec = rounding.spec
        shift = rounding.zero_point.float()
        self.register_buffer("scale", rounding.scale)
        self.register_buffer("zero_point", shift)
        self.register_buffer("lowest", self.spec.quant_min - shift)
        self.register_buffer("highest", self.spec.quant_max - shift)

    def forward(self, x: Tensor, again: bool = False) -> Tensor:
        """Return ``x`` rounded, float32; ``again`` is `IntegerActivation`'s and changes nothing."""
        return self.real_(self.shifted(x))

    def real_(self, shifted: Tensor) -> Tensor:
        """Turn integers less their zero point into real numbers, clamped; return the argument."""
        return shifted.clamp_(self.lowest, self.highest).mul_(self.scale)

    def shifted(self, real: Tensor) -> Tensor:
        """Return the nearest integers, less their zero point, of real numbers; not clamped."""
        return (real / self.scale).round_()


class ExactLayer(nn.Module):
    """A convolution or linear layer with the rounding behind it, summed in integers.

    Args:
        layer: The layer; its weight has no zero point.
        before: What rounded its input.
        behind: What rounds its output; an activation function between them cuts off nothing that
            this does not cut off too.
    """

    weight: Tensor
    bias: Tensor | None
    multiplier: Tensor

    def __init__(self, layer: IntegerLayer, before: ExactRounding, behind: ExactRounding) -> None:
        super().__init__()
        self.layer, self.before, self.behind = layer.layer, before, behind
        unit = before.scale * layer.weight.scale
        bias = None if layer.bias is None else torch.round(layer.bias / unit)
        dtype = _holding(layer.weight.integers, bias, before.spec)
        self.register_buffer("weight", layer.weight.integers.to(dtype))
        self.register_buffer("bias", None if bias is None else bias.to(dtype))
        # Channels of a convolution are dimension 1, those of a linear layer the last one.
        spatial = [1] * (self.weight.dim() - 2)
        multiplier = unit / behind.scale
        self.register_buffer("multiplier", multiplier.reshape(*multiplier.shape, *spatial))

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded result, float32, for an ``x`` on the grid of ``before``."""
        integers = self.before.shifted(x).to(self.weight.dtype)
        total = apply_layer(self.layer, integers, self.weight, self.bias)
        return self.behind.real_(total.float().mul_(self.multiplier).round_())


def _holding(weight: Tensor, bias: Tensor | None, spec: QuantSpec) -> torch.dtype:
    """Return the float type in which no sum of a layer's products can be rounded.

    Args:
        weight: Integers ``(output channels, ...)``.
        bias: Integers ``(output channels,)``.
        spec: Of the input; its zero point is one of its integers.
    """
    largest = weight.flatten(1).double().abs().sum(1) * (spec.quant_max - spec.quant_min)
    if bias is not None:
        largest = largest + bias.abs()
    return torch.float32 if float(largest.max()) < _FLOAT32_HOLDS else torch.float64


class ExactSum(nn.Module):
    """The sum of two rounded tensors with the rounding behind it.

    As ONNX Runtime's QLinearAdd (mlas/lib/qladd.cpp) computes it on x86: with fused
    multiply-and-add, the second tensor first.

    Args:
        left: What rounded the first tensor.
        right: What rounded the second one.
        behind: What rounds the sum.
    """

    left_ratio: Tensor
    right_ratio: Tensor
    fixed: Tensor

    def __init__(self, left: ExactRounding, right: ExactRounding, behind: ExactRounding) -> None:
        super().__init__()
        self.left, self.right, self.behind = left, right, behind
        self.register_buffer("left_ratio", left.scale / behind.scale)
        self.register_buffer("right_ratio", right.scale / behind.scale)
        shifts = _fused(left.zero_point, self.left_ratio, right.zero_point * self.right_ratio)
        self.register_buffer("fixed", behind.zero_point - shifts)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the rounded sum, float32, of tensors on the grids of their roundings."""
        one = self.left.shifted(left).add_(self.left.zero_point)
        other = self.right.shifted(right).add_(self.right.zero_point)
        total = _fused(one, self.left_ratio, _fused(other, self.right_ratio, self.fixed))
        return self.behind.real_(total.round_().sub_(self.behind.zero_point))


def _fused(x: Tensor, factor: Tensor, addend: Tensor) -> Tensor:
    """Return ``x * factor + addend`` in float32, rounded once; either may be broadcast."""
    return (x.double().mul_(factor.double()) + addend.double()).float()
