"""A function of one 8-bit tensor with the quantizer after it, as a table of 256 results."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dq.quant.integer.engine.quantizer import ExactQuantizer


class ExactTable(nn.Module):
    """An elementwise function between two quantizers.

    It computes the same as QLinearSigmoid and QLinearLeakyRelu (contrib_ops/cpu/quantization/
    qlinear_lookup_table.cc), and as a float kernel between DequantizeLinear and QuantizeLinear.

    Args:
        function: An elementwise function of a float32 tensor.
        given: The quantizer of the function's input, 8 bits.
        output_quantizer: The quantizer of its result.
    """

    results: Tensor

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        given: ExactQuantizer,
        output_quantizer: ExactQuantizer,
    ) -> None:
        super().__init__()
        self.given = given
        real = (torch.arange(given.spec.num_levels) + given.lowest) * given.scale
        self.register_buffer("results", output_quantizer(function(real)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the fake-quantized result, float32, for an ``x`` from ``given``."""
        places = self.given.shifted(x).sub_(self.given.lowest).int()
        return self.results.index_select(0, places.flatten()).view_as(x)
