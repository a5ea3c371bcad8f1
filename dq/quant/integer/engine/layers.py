"""Layers and matrix products computed exactly as integer engines compute them.

An engine sums products of integers in 32 bits, adds the bias as an integer, multiplies once by
``x_scale * weight_scale / y_scale`` in float32 and rounds half to even (Jacob et al. 2018, arXiv
1712.05877, section 2.2; the float multiplier is ONNX Runtime's, onnxruntime/core/mlas/lib). Fake
quantization sums real numbers in float32 instead. Its last digits depend on the order of the sum,
so a value near a rounding tie may be rounded the other way and change later layers. Here sums are
exact: integers are added in a float type that represents them all.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dq.quant.integer.engine.quantizer import ExactQuantizer, exact_float
from dq.quant.integer.modules import IntegerWeight
from dq.quant.numerics.spec import QuantSpec

# Computes a layer for an input, a weight and a bias.
Apply = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class ExactLayer(nn.Module):
    """A convolution or linear layer with the quantizer after it, summed in integers.

    Args:
        apply: The layer.
        weight: Its weight, without a zero point.
        bias: Real numbers, or None.
        input_quantizer: The quantizer of its input.
        output_quantizer: The quantizer of its output. An activation function between the two may
            clip only values that the quantizer clips too.
    """

    weight: Tensor
    bias: Tensor | None
    real_bias: Tensor | None
    unit: Tensor
    multiplier: Tensor

    def __init__(
        self,
        apply: Apply,
        weight: IntegerWeight,
        bias: Tensor | None,
        input_quantizer: ExactQuantizer,
        output_quantizer: ExactQuantizer,
    ) -> None:
        super().__init__()
        self.layer, self.input_quantizer, self.output_quantizer = (
            apply,
            input_quantizer,
            output_quantizer,
        )
        unit = input_quantizer.scale * weight.scale
        rounded = None if bias is None else torch.round(bias / unit)
        dtype = _exact_dtype(weight.integers, rounded, input_quantizer.spec)
        self.register_buffer("weight", weight.integers.to(dtype))
        self.register_buffer("bias", None if rounded is None else rounded.to(dtype))
        self.register_buffer("real_bias", bias)
        self.register_buffer("unit", unit)
        self.register_buffer("multiplier", _along(self.weight, unit / output_quantizer.scale))

    def forward(self, x: Tensor) -> Tensor:
        """Return the fake-quantized output, float32, for an ``x`` from ``input_quantizer``."""
        integers = self.input_quantizer.shifted(x).to(self.weight.dtype)
        total = self.layer(integers, self.weight, self.bias)
        return self.output_quantizer.real_(total.float().mul_(self.multiplier).round_())


class ExactLinear(ExactLayer):
    """A linear layer with the quantizer after it.

    With a bias, and on a tensor of three or more dimensions, it is exported as a matrix product and
    a sum. ONNX Runtime computes the product in integers (MatMulIntegerToFloat), converts it to a
    real number, adds the bias in float32 and quantizes.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the fake-quantized output, float32, for an ``x`` from ``input_quantizer``."""
        if x.dim() == 2 or self.real_bias is None:
            return super().forward(x)
        integers = self.input_quantizer.shifted(x).to(self.weight.dtype)
        total = self.layer(integers, self.weight, None).float()
        quantized: Tensor = self.output_quantizer(total.mul_(self.unit).add_(self.real_bias))
        return quantized


class ExactMatrixProduct(nn.Module):
    """The matrix product of two quantized tensors with the quantizer after it (QLinearMatMul).

    Args:
        left: The quantizer of the first tensor.
        right: The quantizer of the second one.
        output_quantizer: The quantizer of the product.
    """

    multiplier: Tensor

    def __init__(
        self, left: ExactQuantizer, right: ExactQuantizer, output_quantizer: ExactQuantizer
    ) -> None:
        super().__init__()
        self.left, self.right, self.output_quantizer = left, right, output_quantizer
        self.largest = float(left.spec.num_levels * right.spec.num_levels)
        self.register_buffer("multiplier", left.scale * right.scale / output_quantizer.scale)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the fake-quantized product, float32, of tensors from their quantizers."""
        dtype = exact_float(self.largest * left.shape[-1])
        one, other = self.left.shifted(left).to(dtype), self.right.shifted(right).to(dtype)
        total = torch.matmul(one, other).float()
        return self.output_quantizer.real_(total.mul_(self.multiplier).round_())


class FloatLayer(nn.Module):
    """A layer with quantized input and weight that the engine computes in float.

    The engine's order of the sum is not known, so a value near a tie may differ. But ONNX Runtime
    rounds its bias to a multiple of the product of both scales, as if it summed in integers.

    Args:
        apply: The layer; a convolution.
        weight: Its weight.
        bias: Real numbers.
        input_quantizer: The quantizer of its input.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, apply: Apply, weight: IntegerWeight, bias: Tensor, input_quantizer: ExactQuantizer
    ) -> None:
        super().__init__()
        self.layer = apply
        unit = input_quantizer.scale * weight.scale
        self.register_buffer("weight", weight())
        self.register_buffer("bias", torch.round(bias / unit) * unit)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's result, float32, for ``x``."""
        return self.layer(x, self.weight, self.bias)


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
    return exact_float(float(largest.max()))


def _along(weight: Tensor, values: Tensor) -> Tensor:
    """Return values per output channel in the shape that broadcasts against a layer's output.

    A convolution's channels are dimension 1, a linear layer's the last dimension.
    """
    return values.reshape(*values.shape, *[1] * (weight.dim() - 2))
