"""Quantizers of activations as integer engines compute them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dq.quant.integer.modules import IntegerActivation


class ExactQuantizer(nn.Module):
    """Fake-quantize as ONNX's QuantizeLinear does: divide, round half to even, clamp.

    Args:
        quantizer: Gives the scale, the zero point and the integer format.

    Buffers ``scale`` and ``zero_point``, float32 ``()``. The zero point is that of unsigned
    integers, because ONNX Runtime on x86 converts int8 to uint8, and some kernels add the zero
    point before they round.
    """

    scale: Tensor
    zero_point: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(self, quantizer: IntegerActivation) -> None:
        super().__init__()
        self.spec = quantizer.spec
        shift = quantizer.zero_point.float()
        unsigned = 2.0 ** (self.spec.bits - 1) if self.spec.signed else 0.0
        self.register_buffer("scale", quantizer.scale)
        self.register_buffer("zero_point", shift + unsigned)
        self.register_buffer("lowest", self.spec.quant_min - shift)
        self.register_buffer("highest", self.spec.quant_max - shift)

    def forward(self, x: Tensor, repeated: bool = False) -> Tensor:
        """Return ``x`` fake-quantized, float32; ``repeated`` is for `IntegerActivation`."""
        return self.real_(self.shifted(x))

    def real_(self, shifted: Tensor) -> Tensor:
        """Clamp integers minus zero point and convert them to real numbers, in place."""
        return shifted.clamp_(self.lowest, self.highest).mul_(self.scale)

    def shifted(self, real: Tensor) -> Tensor:
        """Return the nearest integers minus zero point of real numbers, not clamped."""
        return (real / self.scale).round_()

    def rounded_(self, integers: Tensor) -> Tensor:
        """Round values that include the zero point and convert them to real numbers, in place.

        Adding the zero point in float32 may change the result near a rounding tie.
        """
        return self.real_(integers.round_().sub_(self.zero_point))

    @property
    def is_whole_byte(self) -> bool:
        """Whether it uses all 256 integers of 8 bits; otherwise engines need a Clip before it."""
        return self.spec.bits == 8 and not self.spec.narrow


def exact_float(largest: float) -> torch.dtype:
    """Return a float type that represents all integers up to this size exactly."""
    return torch.float32 if largest < 2.0**24 else torch.float64
