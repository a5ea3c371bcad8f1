"""Averages of one quantized tensor with the quantizer after them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dq.quant.integer.engine.quantizer import ExactQuantizer


class ExactGlobalAverage(nn.Module):
    """The mean over height and width with the quantizer after it, summed in integers.

    It computes the same as QLinearGlobalAveragePool (mlas/lib/qlgavgpool.cpp) on x86: the sum of
    the integers times ``x_scale / (y_scale * size)`` in float32. ARM multiplies in fixed point.

    Args:
        given: The quantizer of the input.
        output_quantizer: The quantizer of the mean.
        keepdim: Keep height and width, of size 1.
    """

    def __init__(
        self, given: ExactQuantizer, output_quantizer: ExactQuantizer, *, keepdim: bool
    ) -> None:
        super().__init__()
        self.given, self.output_quantizer, self.keepdim = given, output_quantizer, keepdim

    def forward(self, x: Tensor) -> Tensor:
        """Return the fake-quantized mean, float32, for an ``x`` ``(N, C, H, W)`` from ``given``."""
        total = self.given.shifted(x).sum((2, 3), keepdim=self.keepdim, dtype=torch.float64)
        size = float(x.shape[2] * x.shape[3])
        ratio = self.given.scale / (self.output_quantizer.scale * size)
        return self.output_quantizer.real_(total.float().mul_(ratio).round_())


class ExactAverage(nn.Module):
    """The quantizer after an average over windows.

    QLinearAveragePool (contrib_ops/cpu/quantization/qlinear_pool.cc) adds real numbers in the order
    of a window's rows, as torch does. It divides by their number and then by the scale, adds the
    zero point, and rounds.

    Args:
        output_quantizer: The quantizer of the average.
    """

    def __init__(self, output_quantizer: ExactQuantizer) -> None:
        super().__init__()
        self.output_quantizer = output_quantizer

    def forward(self, average: Tensor) -> Tensor:
        """Return the fake-quantized average, float32."""
        quantizer = self.output_quantizer
        return quantizer.rounded_((average / quantizer.scale).add_(quantizer.zero_point))


def is_over_the_image(dims: Any) -> bool:
    """Return whether these dimensions are height and width of ``(N, C, H, W)``."""
    if not isinstance(dims, tuple | list) or len(dims) != 2:
        return False
    return {int(d) % 4 for d in dims} == {2, 3}
