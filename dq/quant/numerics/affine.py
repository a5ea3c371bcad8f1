"""Affine quantization: range to scale and zero point, quantize, dequantize, fake-quantize.

Pure functions. ``real = scale * (integer - zero_point)``, after Jacob et al. 2018 (arXiv
1712.05877, equation 1). Zero is always exactly representable, as padding and ReLU need.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dq.quant.numerics.spec import QuantSpec

# The smallest scale. With a smaller one, 1 / scale overflows float32 in torch's kernels.
SMALLEST_SCALE = 2.0**-120


def scale_and_zero_point(
    range_min: Tensor, range_max: Tensor, spec: QuantSpec
) -> tuple[Tensor, Tensor]:
    """Return the scale and the zero point whose integers cover the range and zero.

    Nothing is read back to the host. An empty range (minimum +inf, maximum -inf), or one that holds
    only zero, gives scale 1. Infinities are clamped to a quarter of the largest float32. A NaN
    gives a NaN scale, so a broken weight shows in the loss.

    Args:
        range_min: Smallest real value to represent, any shape ``S``.
        range_max: Largest real value, shape ``S``.
        spec: The integer format.

    Returns:
        ``(scale, zero_point)``, both of shape ``S`` and on the device of the range. The scale is
        float32, as torch's kernels require; the zero point is int32.
    """
    dtype = torch.float64 if range_min.dtype == torch.float64 else torch.float32
    limit = torch.finfo(torch.float32).max / 4
    low = range_min.to(dtype).clamp(min=-limit, max=0.0)
    high = range_max.to(dtype).clamp(min=0.0, max=limit)
    levels = float(spec.quant_max - spec.quant_min)
    if spec.symmetric and spec.signed:
        # The full range has one more negative integer, so the positive side decides.
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

    A logarithm may round across a power of two, and devices round it differently. Adding to the
    mantissa's bits, which carries into the exponent, is exact.

    Args:
        x: Positive normal float32 numbers up to 2**127, any shape. Infinity and NaN are returned
            unchanged.
    """
    mantissa = 2**23 - 1
    rounded = ((x.view(torch.int32) + mantissa) & ~mantissa).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x)


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec) -> Tensor:
    """Quantize ``x`` and dequantize it again: the nearest representable real value.

    The gradient is a straight-through estimator: 1 inside the range, 0 outside (Jacob et al.).
    torch's own kernels are used where possible. They refuse the symbolic sizes of torch.compile,
    and with per-channel zero points they synchronise with the host. In those cases plain operators
    compute the same values. A NaN becomes the smallest representable value, as in torch's kernels.

    Args:
        x: Any shape and floating dtype.
        scale: Shape ``()`` or ``(1,)`` per tensor, ``(x.shape[channel_axis],)`` per channel.
        zero_point: Like ``scale``, int32.
        spec: The integer format.

    Returns:
        A tensor of the shape and dtype of ``x``.
    """
    if torch.compiler.is_compiling() or not (spec.channel_axis is None or spec.symmetric):
        composed: Tensor = _Composed.apply(x, scale, zero_point, spec)
        return composed
    low, high = spec.quant_min, spec.quant_max
    if spec.channel_axis is None:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)
    # The per-channel kernel casts to an integer before it clamps, so large values would wrap.
    largest = min(torch.finfo(x.dtype).max, torch.finfo(scale.dtype).max)
    bound = (scale * 2.0**20).clamp(max=largest).to(x.dtype)
    spread = along_channels(x, bound, spec.channel_axis)
    x = torch.clamp(x, -spread, spread)
    # Integer zero points would be compared on the host. These are all zero, so floats do as well.
    axis = spec.channel_axis % x.dim()
    return torch.fake_quantize_per_channel_affine(x, scale, zero_point.float(), axis, low, high)


def fake_quantize_composed(
    x: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec
) -> tuple[Tensor, Tensor]:
    """Return the result of `fake_quantize` and its gradient mask, using plain operators.

    No gradient flows through this function.

    Args:
        x: As for `fake_quantize`.
        scale: As for `fake_quantize`.
        zero_point: As for `fake_quantize`.
        spec: As for `fake_quantize`.
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
        result, inside = fake_quantize_composed(x, scale, zero_point, spec)
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
        spec: The integer format.
    """
    scale, zero_point = (
        along_channels(x, scale, spec.channel_axis),
        along_channels(x, zero_point, spec.channel_axis),
    )
    x = x if x.dtype == torch.float64 else x.float()
    # Multiply by the reciprocal as torch's fake-quantize kernels do, so that ties round the same.
    integers = torch.round(x * (1.0 / scale)) + zero_point
    integers = integers.nan_to_num(nan=spec.quant_min, posinf=spec.quant_max, neginf=spec.quant_min)
    return integers.clamp(spec.quant_min, spec.quant_max).to(torch.int32)


def dequantize(integers: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec) -> Tensor:
    """Return the real values of these integers, in the dtype of ``scale``.

    Args:
        integers: Any shape, as `quantize` returns them.
        scale: As for `fake_quantize`.
        zero_point: As for `fake_quantize`.
        spec: The integer format.
    """
    shift = along_channels(integers, zero_point, spec.channel_axis)
    return (integers - shift).to(scale.dtype) * along_channels(integers, scale, spec.channel_axis)


def along_channels(x: Tensor, parameter: Tensor, channel_axis: int | None) -> Tensor:
    """Return a parameter in the shape that broadcasts against ``x``.

    Args:
        x: Any shape.
        parameter: Shape ``(x.shape[channel_axis],)``. If the axis is None: any shape, returned as
            it is.
        channel_axis: Dimension of ``x``, or None.
    """
    if channel_axis is None:
        return parameter
    shape = [1] * x.dim()
    shape[channel_axis % x.dim()] = -1
    return parameter.reshape(shape)


def range_over(x: Tensor, channel_axis: int | None) -> tuple[Tensor, Tensor]:
    """Return the minimum and maximum of ``x``, per index of ``channel_axis`` or over the tensor.

    Args:
        x: Any shape; an empty one gives the neutral range (+inf, -inf).
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


def sum_over(x: Tensor, channel_axis: int | None) -> Tensor:
    """Return the sum of ``x``, per index of ``channel_axis`` or over the tensor.

    Args:
        x: Any shape.
        channel_axis: Dimension to keep, or None.

    Returns:
        A tensor of shape ``()`` or ``(x.shape[channel_axis],)``.
    """
    if channel_axis is None:
        return x.sum()
    others = [d for d in range(x.dim()) if d != channel_axis % x.dim()]
    return x.sum(others) if others else x
