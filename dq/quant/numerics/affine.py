"""The arithmetic of affine quantization: range -> scale and zero point; quantize; dequantize.

Pure functions. ``real = scale * (integer - zero_point)``, after Jacob et al. 2018 (arXiv
1712.05877, equation 1). Zero is always representable exactly, as padding and ReLU need.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dq.quant.numerics.spec import QuantSpec

# The smallest scale: below it 1 / scale overflows float32 in the kernels of torch.
SMALLEST_SCALE = 2.0**-120


def scale_and_zero_point(
    range_min: Tensor, range_max: Tensor, spec: QuantSpec
) -> tuple[Tensor, Tensor]:
    """Choose scale and zero point so that the integers cover the range and zero.

    No value leaves the device. A range that is empty (minimum +inf, maximum -inf) or a single zero
    gives scale 1; infinities count as a quarter of the dtype's largest number; a NaN gives a NaN
    scale, so that a broken weight is seen in the loss and not rounded away.

    Args:
        range_min: Smallest real value to represent, any shape ``S``.
        range_max: Largest real value, shape ``S``.
        spec: The integers.

    Returns:
        ``(scale, zero_point)``, both of shape ``S``, float32 (as torch's kernels want it, whatever
        the dtype of the range) and int32, on the device of the range.
    """
    dtype = torch.float64 if range_min.dtype == torch.float64 else torch.float32
    limit = torch.finfo(torch.float32).max / 4
    low = range_min.to(dtype).clamp(min=-limit, max=0.0)
    high = range_max.to(dtype).clamp(min=0.0, max=limit)
    levels = float(spec.quant_max - spec.quant_min)
    if spec.symmetric and spec.signed:
        # With the full range the negative side has one integer more; use the smaller side.
        width, levels = torch.maximum(-low, high), float(spec.quant_max)
    elif spec.symmetric:
        width = high
    else:
        width = high - low
    empty = (width <= 0) | (range_min > range_max)
    scale = torch.where(empty, torch.ones_like(width), width / levels).float()
    scale = scale.clamp(min=SMALLEST_SCALE)
    if spec.power_of_two:
        scale = next_power_of_two(scale)
    if spec.symmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    zero_point = torch.round(spec.quant_min - low / scale).nan_to_num(nan=spec.quant_min)
    zero_point = zero_point.clamp(spec.quant_min, spec.quant_max)
    neutral = min(max(0, spec.quant_min), spec.quant_max)
    zero_point = torch.where(empty, torch.full_like(zero_point, neutral), zero_point)
    return scale, zero_point.to(torch.int32)


def next_power_of_two(x: Tensor) -> Tensor:
    """Return the smallest power of two that is not below ``x``, exactly and on any device.

    A logarithm could round across a power of two, and not alike on all devices; carrying the
    mantissa's bits into the exponent cannot.

    Args:
        x: Positive normal float32 numbers up to 2**127, any shape; others are returned unchanged.
    """
    mantissa = 2**23 - 1
    rounded = ((x.view(torch.int32) + mantissa) & ~mantissa).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x)


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec) -> Tensor:
    """Round ``x`` to the nearest representable value and return it as a real number.

    The gradient is passed straight through inside the range and is zero outside (Jacob et al.).
    torch's own kernels do the work where they can: they refuse sizes that torch.compile leaves
    open, and compare zero points of channels on the host, a synchronisation in every layer. There
    plain operators compute the same. A NaN becomes the smallest representable value, as it does in
    the kernels.

    Args:
        x: Any shape and floating dtype.
        scale: Shape ``()`` or ``(1,)`` per tensor, ``(x.shape[channel_axis],)`` per channel.
        zero_point: Like ``scale``, int32.
        spec: The integers.

    Returns:
        A tensor of the shape and dtype of ``x``.
    """
    if torch.compiler.is_compiling() or not (spec.channel_axis is None or spec.symmetric):
        composed: Tensor = _Composed.apply(x, scale, zero_point, spec)
        return composed
    low, high = spec.quant_min, spec.quant_max
    if spec.channel_axis is None:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)
    # The kernel for channels casts to an integer before it clamps, so large values would wrap.
    largest = min(torch.finfo(x.dtype).max, torch.finfo(scale.dtype).max)
    bound = (scale * 2.0**20).clamp(max=largest).to(x.dtype)
    spread = along_channels(x, bound, spec.channel_axis)
    x = torch.clamp(x, -spread, spread)
    # Zero points that are integers would be compared on the host; these are all zero.
    axis = spec.channel_axis % x.dim()
    return torch.fake_quantize_per_channel_affine(x, scale, zero_point.float(), axis, low, high)


def round_composed(
    x: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec
) -> tuple[Tensor, Tensor]:
    """Return what `fake_quantize` returns, and where gradients pass, by plain operators.

    Args:
        x: As for `fake_quantize`, like the others; no gradient flows here.
        scale: See there.
        zero_point: See there.
        spec: See there.
    """
    step = along_channels(x, scale, spec.channel_axis)
    shift = along_channels(x, zero_point, spec.channel_axis)
    values = x if x.dtype == torch.float64 else x.float()
    integers = torch.round(values * (1.0 / step)) + shift
    inside = (integers >= spec.quant_min) & (integers <= spec.quant_max)
    integers = integers.clamp(spec.quant_min, spec.quant_max)
    integers = torch.where(integers.isnan(), float(spec.quant_min), integers)
    return ((integers - shift) * step).to(x.dtype), inside


class _Composed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec) -> Tensor:
        result, inside = round_composed(x, scale, zero_point, spec)
        ctx.save_for_backward(inside)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec) -> Tensor:
    """Return the integers of ``x`` as int32, rounded half to even and clamped to the spec.

    Args:
        x: Any shape; a NaN becomes ``quant_min``.
        scale: As for `fake_quantize`.
        zero_point: As for `fake_quantize`.
        spec: The integers.
    """
    scale, zero_point = (
        along_channels(x, scale, spec.channel_axis),
        along_channels(x, zero_point, spec.channel_axis),
    )
    x = x if x.dtype == torch.float64 else x.float()
    # torch's fake-quantize kernels multiply by the reciprocal: the same order keeps ties the same.
    integers = torch.round(x * (1.0 / scale)) + zero_point
    integers = integers.nan_to_num(nan=spec.quant_min, posinf=spec.quant_max, neginf=spec.quant_min)
    return integers.clamp(spec.quant_min, spec.quant_max).to(torch.int32)


def dequantize(integers: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec) -> Tensor:
    """Return the real numbers that these integers stand for, in the dtype of ``scale``.

    Args:
        integers: Any shape, as `quantize` returns them.
        scale: As for `fake_quantize`.
        zero_point: As for `fake_quantize`.
        spec: The integers.
    """
    shift = along_channels(integers, zero_point, spec.channel_axis)
    return (integers - shift).to(scale.dtype) * along_channels(integers, scale, spec.channel_axis)


def along_channels(x: Tensor, parameter: Tensor, channel_axis: int | None) -> Tensor:
    """Return a parameter in the shape that broadcasts against ``x``.

    Args:
        x: Any shape.
        parameter: Shape ``(x.shape[channel_axis],)``; of any shape, and returned as it is, when
            the axis is None.
        channel_axis: Dimension of ``x``, or None.
    """
    if channel_axis is None:
        return parameter
    shape = [1] * x.dim()
    shape[channel_axis % x.dim()] = -1
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
