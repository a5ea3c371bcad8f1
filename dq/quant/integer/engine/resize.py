"""Bilinear interpolation of a quantized tensor with the quantizer after it.

ONNX Runtime computes it in float between DequantizeLinear and QuantizeLinear
(onnxruntime/core/providers/cpu/tensor/upsample.h), each weight as a product of two differences of
coordinates. If both have the same scale and zero point, it leaves them out and interpolates the
bytes with weights of 20 bits, without rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dq.quant.integer.engine.quantizer import ExactQuantizer

_BITS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Resizing:
    """The new size of an image.

    Attributes:
        size: Height and width, or None.
        factors: By which height and width grow, if there is no size.
        align_corners: The corner pixels' centres stay in place, instead of the corners.
    """

    size: tuple[int, int] | None
    factors: tuple[float, float] | None
    align_corners: bool


class ExactResize(nn.Module):
    """Bilinear interpolation with the quantizers before and after it.

    Args:
        resizing: The new size.
        given: The quantizer of the input.
        output_quantizer: The quantizer of the result.
    """

    def __init__(
        self, resizing: Resizing, given: ExactQuantizer, output_quantizer: ExactQuantizer
    ) -> None:
        super().__init__()
        self.resizing, self.given, self.output_quantizer = resizing, given, output_quantizer
        self.in_bytes = given.spec.bits == 8 and given.equals(output_quantizer)

    def forward(self, x: Tensor) -> Tensor:
        """Return the fake-quantized interpolation, float32, of ``x`` ``(N, C, H, W)``."""
        rows, columns = (self._axis(x.shape[dim], dim - 2) for dim in (2, 3))
        if self.in_bytes:
            return self._interpolated_bytes(x, rows, columns)
        quantized: Tensor = self.output_quantizer(_interpolated(x, rows, columns))
        return quantized

    def _axis(self, length: int, axis: int) -> _Axis:
        resizing = self.resizing
        if resizing.size is not None:
            new = resizing.size[axis]
            factor = torch.tensor(float(new)) / length
        else:
            assert resizing.factors is not None
            factor = torch.tensor(float(resizing.factors[axis]))
            new = int(length * resizing.factors[axis])
        return _Axis(length, new, factor, align_corners=resizing.align_corners)

    def _interpolated_bytes(self, x: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
        quantizer = self.output_quantizer
        integers = self.given.shifted(x).sub_(quantizer.lowest).double()
        total = _interpolated(integers, rows.in_integers(), columns.in_integers())
        whole = torch.floor(total / 2.0 ** (2 * _BITS)).float()
        return quantizer.real_(whole.add_(quantizer.lowest))


class _Axis:
    """The two pixels between which each new pixel of one dimension lies, and its distances to them.

    Attributes:
        first: Index of the pixel before it, ``(new,)``.
        second: Index of the pixel after it.
        to_first: Distance to the pixel before, float32.
        to_second: Distance to the pixel after.
    """

    def __init__(self, length: int, new: int, factor: Tensor, *, align_corners: bool) -> None:
        places = torch.arange(new, dtype=torch.float32)
        if float(factor) != 1.0:
            if not align_corners:
                places = (places + 0.5) / factor - 0.5
            elif new == 1:
                places = places * 0.0
            else:
                places = places * (length - 1) / (new - 1)
        self.places = places.clamp(0, length - 1)
        self.first = self.places.long()
        self.second = (self.first + 1).clamp(max=length - 1)
        self._set_distances(self.places, 1)

    def _set_distances(self, places: Tensor, unit: int) -> None:
        alone = self.first == self.second
        self.to_first, self.to_second = (
            torch.where(alone, 0.5 * unit, (places - pixel * unit).abs())
            for pixel in (self.first, self.second)
        )

    def in_integers(self) -> _Axis:
        """Return the distances as whole numbers of 10 bits, float64."""
        unit = 1 << _BITS
        self._set_distances((self.places * unit).floor().double(), unit)
        return self


def _interpolated(x: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
    above, below = x[:, :, rows.first], x[:, :, rows.second]
    pixels: Sequence[tuple[Tensor, Tensor, Tensor]] = (
        (above[..., columns.first], rows.to_second, columns.to_second),
        (above[..., columns.second], rows.to_second, columns.to_first),
        (below[..., columns.first], rows.to_first, columns.to_second),
        (below[..., columns.second], rows.to_first, columns.to_first),
    )
    total = torch.zeros((), dtype=x.dtype)
    for value, vertical, horizontal in pixels:
        total = total + (horizontal * vertical[:, None]) * value
    return total
