"""Softmax between two quantizers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dq.quant.integer.engine.quantizer import ExactQuantizer

_FLOAT32_MAX = torch.finfo(torch.float32).max
# Logarithm of the factor that ONNX Runtime keeps between the largest sum and infinity.
_RESERVE = 5.0


class ExactSoftmax(nn.Module):
    """Softmax along one dimension with the quantizers before and after it.

    It computes the same as QLinearSoftmax (contrib_ops/cpu/quantization/qlinear_softmax.cc).
    Exponentials come from a table, scaled so that the largest sum still fits into float32, and are
    added in order. The quotient is multiplied by ``floor(1 / y_scale)``. The zero point of the
    input does not matter.

    Args:
        dim: The dimension.
        given: The quantizer of its input, 8 bits.
        output_quantizer: The quantizer of its result.
    """

    def __init__(self, dim: int, given: ExactQuantizer, output_quantizer: ExactQuantizer) -> None:
        super().__init__()
        self.dim, self.given, self.output_quantizer = dim, given, output_quantizer
        self.levels = float(torch.floor(1.0 / output_quantizer.scale))

    def forward(self, x: Tensor) -> Tensor:
        """Return the fake-quantized softmax, float32, for an ``x`` from ``given``."""
        integers = self.given.shifted(x).int()
        # Shifted so that the largest value is the last entry of the table.
        places = integers - integers.amax(self.dim, keepdim=True) + 255
        table = self._exponentials(x.shape[self.dim])
        values = table.index_select(0, places.flatten()).view_as(x)
        total = torch.zeros_like(values.select(self.dim, 0))
        for part in values.unbind(self.dim):  # In order: float32 sums depend on it.
            total = total + part
        shares = (values * self.levels) / total.unsqueeze(self.dim)
        shift = self.output_quantizer.zero_point
        return self.output_quantizer.real_(shares.round_().add_(shift).clamp_(max=255).sub_(shift))

    def _exponentials(self, num: int) -> Tensor:
        """Return the table for sums of ``num`` values, float32 ``(256,)``."""
        scale = float(self.given.scale)
        largest = torch.tensor(_FLOAT32_MAX) / num
        shift = max(0.0, math.log(float(largest)) - _RESERVE) / scale
        steps = torch.arange(256, dtype=torch.float64)
        return ((steps - 255 + shift) * scale).exp().float()
