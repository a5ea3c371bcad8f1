"""Sums and products of two quantized tensors with the quantizer after them."""

from __future__ import annotations

from torch import Tensor, nn

from dq.quant.integer.engine.arithmetic import fused_once
from dq.quant.integer.engine.quantizer import ExactQuantizer


class ExactSum(nn.Module):
    """The sum of two quantized tensors with the quantizer after it.

    It computes the same as ONNX Runtime's QLinearAdd (mlas/lib/qladd.cpp) on x86: with fused
    multiply-add, the second tensor first.

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
        shifts = fused_once(left.zero_point, self.left_ratio, right.zero_point * self.right_ratio)
        self.register_buffer("fixed", output_quantizer.zero_point - shifts)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the fake-quantized sum, float32, of tensors from their quantizers."""
        one = self.left.shifted(left).add_(self.left.zero_point)
        other = self.right.shifted(right).add_(self.right.zero_point)
        total = fused_once(one, self.left_ratio, fused_once(other, self.right_ratio, self.fixed))
        return self.output_quantizer.rounded_(total)


class ExactProduct(nn.Module):
    """The product of two quantized tensors with the quantizer after it.

    It computes the same as ONNX Runtime's QLinearMul (mlas/lib/qlmul.cpp): multiply the integers,
    multiply by one ratio, add the zero point, round. Either tensor may be broadcast, as in squeeze
    and excitation.

    Args:
        left: The quantizer of the first tensor.
        right: The quantizer of the second one.
        output_quantizer: The quantizer of the product.
    """

    ratio: Tensor
    added: Tensor

    def __init__(
        self, left: ExactQuantizer, right: ExactQuantizer, output_quantizer: ExactQuantizer
    ) -> None:
        super().__init__()
        self.left, self.right, self.output_quantizer = left, right, output_quantizer
        self.register_buffer("ratio", left.scale * right.scale / output_quantizer.scale)
        self.register_buffer("added", output_quantizer.zero_point.clone())

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the fake-quantized product, float32, of tensors from their quantizers."""
        integers = self.left.shifted(left) * self.right.shifted(right)
        return self.output_quantizer.rounded_(integers.mul_(self.ratio).add_(self.added))
