"""Layers, sums and quantizers computed exactly as integer engines compute them.

An engine sums products of integers in 32 bits, adds the bias as an integer, multiplies once by
``x_scale * weight_scale / y_scale`` in float32 and rounds half to even (Jacob et al. 2018, arXiv
1712.05877, section 2.2; the float multiplier is ONNX Runtime's, onnxruntime/core/mlas/lib). Fake
quantization sums real numbers in float32 instead. Its last digits depend on the order of the sum,
so a value near a rounding tie may go the other way and change later layers. Here sums are exact:
integers are added in a float type that represents them all.

Between modules values are real numbers, integer times scale. So operations that only move values
(pooling, reshaping, concatenation) run unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dq.quant.integer.modules import IntegerActivation, IntegerLayer
from dq.quant.numerics.spec import QuantSpec
from dq.quant.quantizers.layers import apply_layer

# Integers up to this size are exact in float32.
_FLOAT32_EXACT = 2.0**24


class ExactQuantizer(nn.Module):
    """Fake-quantize as ONNX's QuantizeLinear does: divide, round half to even, clamp.

    Args:
        quantizer: Gives the scale, the zero point and the integer format.
    """

    scale: Tensor
    zero_point: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, quantizer: IntegerActivation) -> None:
        super().__init__()
        self.spec = quantizer.spec
        shift = quantizer.zero_point.float()
        self.register_buffer("scale", quantizer.scale)
        self.register_buffer("zero_point", shift)
        self.register_buffer("lowest", self.spec.quant_min - shift)
        self.register_buffer("highest", self.spec.quant_max - shift)

    def forward(self, x: Tensor, repeated: bool = False) -> Tensor:
        """Return ``x`` fake-quantized, float32; ``repeated`` is for `IntegerActivation`."""
        return self.real_(self.shifted(x))

    def real_(self, shifted: Tensor) -> Tensor:
        """Clamp integers less their zero point and make them real numbers, in place."""
        return shifted.clamp_(self.lowest, self.highest).mul_(self.scale)

    def shifted(self, real: Tensor) -> Tensor:
        """Return the nearest integers of real numbers, less the zero point; not clamped."""
        return (real / self.scale).round_()


class ExactLayer(nn.Module):
    """A convolution or linear layer with the quantizer after it, summed in integers.

    Args:
        layer: The layer; its weight has no zero point.
        input_quantizer: The quantizer of its input.
        output_quantizer: The quantizer of its output. An activation function in between clips
            only values that the quantizer clips too.
    """

    weight: Tensor
    bias: Tensor | None
    multiplier: Tensor

    def __init__(
        self, layer: IntegerLayer, input_quantizer: ExactQuantizer, output_quantizer: ExactQuantizer
    ) -> None:
        super().__init__()
        self.layer, self.input_quantizer, self.output_quantizer = (
            layer.layer,
            input_quantizer,
            output_quantizer,
        )
        unit = input_quantizer.scale * layer.weight.scale
        bias = None if layer.bias is None else torch.round(layer.bias / unit)
        dtype = _exact_dtype(layer.weight.integers, bias, input_quantizer.spec)
        self.register_buffer("weight", layer.weight.integers.to(dtype))
        self.register_buffer("bias", None if bias is None else bias.to(dtype))
        # A convolution's channels are dimension 1, a linear layer's the last dimension.
        spatial = [1] * (self.weight.dim() - 2)
        multiplier = unit / output_quantizer.scale
        self.register_buffer("multiplier", multiplier.reshape(*multiplier.shape, *spatial))

    def forward(self, x: Tensor) -> Tensor:
        """Return the fake-quantized output, float32, for an ``x`` from ``input_quantizer``."""
        integers = self.input_quantizer.shifted(x).to(self.weight.dtype)
        total = apply_layer(self.layer, integers, self.weight, self.bias)
        return self.output_quantizer.real_(total.float().mul_(self.multiplier).round_())


def _exact_dtype(weight: Tensor, bias: Tensor | None, spec: QuantSpec) -> torch.dtype:
    """Return a float type that represents every sum of a layer's products exactly.

    Args:
        weight: Integers ``(output channels, ...)``.
        bias: Integers ``(output channels,)``.
        spec: Integer format of the input, which includes its zero point.
    """
    largest = weight.flatten(1).double().abs().sum(1) * (spec.quant_max - spec.quant_min)
    if bias is not None:
        largest = largest + bias.abs()
    return torch.float32 if float(largest.max()) < _FLOAT32_EXACT else torch.float64


class ExactSum(nn.Module):
    """The sum of two quantized tensors with the quantizer after it.

    As ONNX Runtime's QLinearAdd (mlas/lib/qladd.cpp) computes it on x86: with fused multiply-add,
    the second tensor first.

    Args:
        left: The quantizer of the first tensor.
        right: The quantizer of the second one.
        output_quantizer: The quantizer of the sum.
    """

    left_ratio: Tensor
    right_ratio: Tensor
    fixed: Tensor

    def __init__(
        self, left: ExactQuantizer, right: ExactQuantizer, output_quantizer: ExactQuantizer
    ) -> None:
        super().__init__()
        self.left, self.right, self.output_quantizer = left, right, output_quantizer
        self.register_buffer("left_ratio", left.scale / output_quantizer.scale)
        self.register_buffer("right_ratio", right.scale / output_quantizer.scale)
        shifts = _fused(left.zero_point, self.left_ratio, right.zero_point * self.right_ratio)
        self.register_buffer("fixed", output_quantizer.zero_point - shifts)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the fake-quantized sum, float32, of tensors from their quantizers."""
        one = self.left.shifted(left).add_(self.left.zero_point)
        other = self.right.shifted(right).add_(self.right.zero_point)
        total = _fused(one, self.left_ratio, _fused(other, self.right_ratio, self.fixed))
        return self.output_quantizer.real_(total.round_().sub_(self.output_quantizer.zero_point))


def _fused(x: Tensor, factor: Tensor, addend: Tensor) -> Tensor:
    """Return ``x * factor + addend`` in float32, rounded once; either may be broadcast."""
    return (x.double().mul_(factor.double()) + addend.double()).float()
