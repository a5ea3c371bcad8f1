"""Bilinear interpolation of a quantized tensor with the quantizer after it.

ONNX Runtime computes it in float between DequantizeLinear and QuantizeLinear
(onnxruntime/core/providers/cpu/tensor/upsample.h). Each weight is a product of two differences of
coordinates, in the same order for every memory layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dq.quant.integer.engine.quantizer import ExactQuantizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Resizing:
    """How an interpolation changes an image's size.

    Attributes:
        factors: Scale factors of height and width; None if the new size is given.
        align_corners: Align the centres of the corner pixels instead of their outer corners.
    """

    factors: tuple[float, float] | None
    align_corners: bool


class ExactResize(nn.Module):
    """Bilinear interpolation with the quantizer after it.

    Args:
        resizing: The change of size.
        output_quantizer: The quantizer of the result.
    """

    def __init__(self, resizing: Resizing, output_quantizer: ExactQuantizer) -> None:
        super().__init__()
        self.resizing, self.output_quantizer = resizing, output_quantizer

    def forward(self, x: Tensor, size: int | Sequence[int] | None = None) -> Tensor:
        """Return the fake-quantized interpolation, float32, of ``x`` ``(N, C, H, W)``.

        Args:
            x: Quantized.
            size: Height and width of the result; None to use the factors.
        """
        quantized: Tensor = self.output_quantizer(interpolated(x, self.resizing, size))
        return quantized


def interpolated(x: Tensor, resizing: Resizing, size: int | Sequence[int] | None = None) -> Tensor:
    """Return the bilinear interpolation, float32, of ``x`` ``(N, C, H, W)``.

    Args:
        x: Real numbers.
        resizing: The change of size.
        size: Height and width of the result; None to use the factors.
    """
    sizes = (size, size) if isinstance(size, int) else size
    rows, columns = (
        _axis(x.shape[2 + axis], axis, None if sizes is None else int(sizes[axis]), resizing)
        for axis in (0, 1)
    )
    above, below = x[:, :, rows.first], x[:, :, rows.second]
    pixels = (
        (above[..., columns.first], rows.to_second, columns.to_second),
        (above[..., columns.second], rows.to_second, columns.to_first),
        (below[..., columns.first], rows.to_first, columns.to_second),
        (below[..., columns.second], rows.to_first, columns.to_first),
    )
    total = torch.zeros((), dtype=x.dtype)
    for value, vertical, horizontal in pixels:
        total = total + (horizontal * vertical[:, None]) * value
    return total


def _axis(length: int, axis: int, new: int | None, resizing: Resizing) -> _Axis:
    if new is not None:
        factor = torch.tensor(float(new)) / length
    else:
        assert resizing.factors is not None
        factor = torch.tensor(float(resizing.factors[axis]))
        new = int(length * resizing.factors[axis])
    return _Axis(length, new, factor, align_corners=resizing.align_corners)


class _Axis:
    """The two old pixels next to each new pixel along one dimension, and the distances to them.

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
            elif new > 1:
                places = places * (length - 1) / (new - 1)
        places = places.clamp(0, length - 1)
        self.first = places.long()
        self.second = (self.first + 1).clamp(max=length - 1)
        alone = self.first == self.second
        self.to_first, self.to_second = (
            torch.where(alone, 0.5, (places - pixel).abs()) for pixel in (self.first, self.second)
        )
