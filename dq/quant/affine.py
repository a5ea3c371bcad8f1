"""The arithmetic of affine quantization: range -> scale and zero point; quantize; dequantize.

Pure functions. ``real = scale * (integer - zero_point)``, after Jacob et al. 2018 (arXiv 1712.05877,
equation 1). Zero is always representable exactly, as padding and ReLU need.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dq.quant.spec import QuantSpec

# The smallest scale: below it 1 / scale overflows float32 in the kernels of torch.
SMALLEST_SCALE = 2.0**-120


def scale_and_zero_point(
    range_min: Tensor, range_max: Tensor, spec: QuantSpec
) -> tuple[Tensor, Tensor]:
    """Choose scale and zero point so that the integers cover the range and zero.

    No value leaves the device, and a range that is empty (minimum +inf, maximum -inf) or a single
    zero gives scale 1 and zero point 0.

    Args:
        range_min: Smallest real value to represent, any shape ``S``.
        range_max: Largest real value, shape ``S``.
        spec: The integers.

    Returns:
        ``(scale, zero_point)``, both of shape ``S``: float32 (float64 for a float64 range) and
        int32, on the device of the range.
    """
    dtype = torch.float64 if range_min.dtype == torch.float64 else torch.float32
    low = range_min.to(dtype).clamp(max=0.0)
    high = range_max.to(dtype).clamp(min=0.0)
    # Observed infinities would make the scale infinite and every value a NaN.
    limit = torch.finfo(dtype).max / 4
    low, high = low.clamp(min=-limit), high.clamp(max=limit)
    steps = float(spec.quant_max - spec.quant_min)
    if spec.symmetric and spec.signed:
        # With the full range the negative side has one integer more; use the smaller side.
        width, steps = torch.maximum(-low, high), float(spec.quant_max)
    elif spec.symmetric:
        width = high
    else:
        width = high - low
    empty = (width <= 0) | (range_min > range_max)
    scale = torch.where(empty, torch.ones_like(width), width / steps)
    scale = scale.clamp(min=SMALLEST_SCALE)
    if spec.power_of_two:
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    if spec.symmetric:
        zero_point = torch.zeros_like(scale)
    else:
        zero_point = torch.round(spec.quant_min - low / scale)
        zero_point = zero_point.clamp(spec.quant_min, spec.quant_max)
        zero_point = torch.where(empty, torch.full_like(zero_point, spec.quant_min), zero_point)
        if spec.quant_min <= 0 <= spec.quant_max:
            zero_point = torch.where(empty, torch.zeros_like(zero_point), zero_point)
    return scale, zero_point.to(torch.int32)


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec) -> Tensor:
    """Round ``x`` to the nearest representable value and return it as a real number.

    The gradient is passed straight through inside the range and is zero outside (Jacob et al.).
    torch's own kernels do the work, so torch.compile fuses them.

    Args:
        x: Any shape and floating dtype.
        scale: Shape ``()`` or ``(1,)`` per tensor, ``(x.shape[channel_axis],)`` per channel.
        zero_point: Like ``scale``, int32.
        spec: The integers.

    Returns:
        A tensor of the shape and dtype of ``x``.
    """
    low, high = spec.quant_min, spec.quant_max
    if spec.channel_axis is None:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)
    axis = spec.channel_axis % x.dim()
    return torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, low, high)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec) -> Tensor:
    """Return the integers of ``x`` as int32, rounded half to even and clamped to the spec.

    Args:
        x: Any shape.
        scale: As for `fake_quantize`.
        zero_point: As for `fake_quantize`.
        spec: The integers.
    """
    scale, zero_point = _spread(x, scale, spec), _spread(x, zero_point, spec)
    # torch's fake-quantize kernels multiply by the reciprocal: the same order keeps ties the same.
    integers = torch.round(x * (1.0 / scale)) + zero_point
    return integers.clamp(spec.quant_min, spec.quant_max).to(torch.int32)


def dequantize(integers: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec) -> Tensor:
    """Return the real numbers that these integers stand for, in the dtype of ``scale``.

    Args:
        integers: Any shape, as `quantize` returns them.
        scale: As for `fake_quantize`.
        zero_point: As for `fake_quantize`.
        spec: The integers.
    """
    shift = _spread(integers, zero_point, spec)
    return (integers - shift).to(scale.dtype) * _spread(integers, scale, spec)


def _spread(x: Tensor, parameter: Tensor, spec: QuantSpec) -> Tensor:
    """Give a per-channel parameter the shape that broadcasts against ``x``."""
    if spec.channel_axis is None:
        return parameter
    shape = [1] * x.dim()
    shape[spec.channel_axis % x.dim()] = -1
    return parameter.reshape(shape)


def range_over(x: Tensor, channel_axis: int | None) -> tuple[Tensor, Tensor]:
    """Return minimum and maximum of ``x``, for each index of ``channel_axis`` or over all.

    Args:
        x: Any shape; where it is empty the result is the neutral range (+inf, -inf).
        channel_axis: Dimension to keep, or None.

    Returns:
        Two tensors of shape ``()`` or ``(x.shape[channel_axis],)``.
    """
    if channel_axis is None:
        if x.numel() == 0:
            return x.new_full((), torch.inf), x.new_full((), -torch.inf)
        low, high = torch.aminmax(x)
        return low, high
    flat = x.transpose(0, channel_axis % x.dim()).flatten(1) if x.dim() > 1 else x.unsqueeze(1)
    if flat.shape[1] == 0:
        return x.new_full((len(flat),), torch.inf), x.new_full((len(flat),), -torch.inf)
    return flat.amin(1), flat.amax(1)
