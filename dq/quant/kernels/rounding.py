"""Fake quantization of activations and weights in one pass each, with gradients.

Uses the native kernels. Results are equal bit for bit to those of torch's operators in
`dq.quant.quantizers.fake_quantize`, `dq.quant.quantizers.learned_step` and
`dq.quant.quantizers.layers`, as tests show. Callers ask `dq.quant.kernels.native.takes` first.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

from dq.quant.kernels import operators as native_ops
from dq.quant.kernels.recompute import make_recomputable
from dq.quant.numerics.spec import QuantSpec

# Lower and upper bound of a clipping activation function.
Clip = tuple[float, float]
NO_CLIP: Clip = (-torch.inf, torch.inf)
Record = tuple[Tensor, Tensor]


def fake_quantize_activation(
    x: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    spec: QuantSpec,
    *,
    clip: Clip = NO_CLIP,
    record: Record | None = None,
    in_place: bool = False,
) -> Tensor:
    """Clip ``x``, record its minimum and maximum, and fake-quantize it, in one pass.

    Args:
        x: Any shape, float32, dense.
        scale: Float32 ``()``; None does not fake-quantize.
        zero_point: Int32 ``()``; None with ``scale``.
        spec: The integer format; per tensor.
        clip: Bounds of the preceding activation function. Values at a bound get no gradient.
        record: Minimum and maximum after clipping, ``()`` each, updated; None does not record.
        in_place: Write into ``x``, which nothing else may need.

    Returns:
        A tensor of the shape, dtype and memory layout of ``x``; ``x`` itself if it is only
        recorded, or in place.
    """
    if torch.compiler.is_compiling():
        return _compiled_activation(x, scale, zero_point, spec, clip, record)
    if scale is None and clip == NO_CLIP:
        if record is not None:
            _activation(x.detach(), None, None, None, None, spec, clip, record)
        return x
    if torch.is_grad_enabled() and x.requires_grad:
        result: Tensor = _Activation.apply(x, scale, zero_point, spec, clip, record, in_place)
        return result
    y = x if in_place else torch.empty_like(x)
    _activation(x, y, None, scale, zero_point, spec, clip, record)
    return y


def clipped(x: Tensor, clip: Clip) -> Tensor:
    """Return ``x`` after a clipping activation function (ReLU, ReLU6, Hardtanh)."""
    if clip == NO_CLIP:
        return x
    return F.relu(x) if clip == (0.0, torch.inf) else F.hardtanh(x, *clip)


def _compiled_activation(
    x: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    spec: QuantSpec,
    clip: Clip,
    record: Record | None,
) -> Tensor:
    if scale is None and record is None:
        return clipped(x, clip)
    observes = record is not None
    y, _, extremes = native_ops.activation(
        x, scale, zero_point, spec.quant_min, spec.quant_max, *clip, observes
    )
    if record is not None:
        for kept, found, merge in zip(
            record, extremes.unbind(), (torch.minimum, torch.maximum), strict=True
        ):
            kept.copy_(merge(kept, found))
    return y if scale is not None else clipped(x, clip)


def _activation(
    x: Tensor,
    y: Tensor | None,
    mask: Tensor | None,
    scale: Tensor | None,
    zero_point: Tensor | None,
    spec: QuantSpec,
    clip: Clip,
    record: Record | None,
) -> None:
    integers_and_clip = spec.quant_min, spec.quant_max, *clip
    native_ops.activate(x, y, mask, scale, zero_point, integers_and_clip, record)


class _Activation(torch.autograd.Function):
    """Passes gradients of values that neither the clip nor the quantization range cut off."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor | None,
        zero_point: Tensor | None,
        spec: QuantSpec,
        clip: Clip,
        record: Record | None,
        in_place: bool,
    ) -> Tensor:
        mask = torch.empty_like(x, dtype=torch.uint8)
        y = x if in_place else torch.empty_like(x)
        _activation(x, y, mask, scale, zero_point, spec, clip, record)
        if in_place:
            ctx.mark_dirty(x)
        ctx.save_for_backward(mask)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (mask,) = ctx.saved_tensors
        return (native_ops.masked_gradient(gradients[0], mask), *[None] * 6)


def fake_quantize_learned(
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    zero_point: Tensor,
    spec: QuantSpec,
    *,
    clip: Clip = NO_CLIP,
    factor: float | Tensor = 1.0,
) -> Tensor:
    """Clip ``x`` and fake-quantize it with a learned scale, in one pass.

    Args:
        x: Any shape, float32, dense.
        scale: Positive, float32 ``()``.
        offset: Learned real value of integer 0, float32 ``()``; None if it is not learned.
        zero_point: Int32 ``()``.
        spec: The integer format; per tensor.
        clip: Bounds of the preceding activation function.
        factor: Multiplies the gradients of scale and offset; a tensor only under torch.compile.

    Returns:
        A tensor of the shape, dtype and memory layout of ``x``.
    """
    if torch.compiler.is_compiling():
        if not isinstance(factor, Tensor):
            factor = torch.full((), factor, dtype=torch.float64)
        compiled: Tensor = native_ops.learned(
            x, scale, offset, zero_point, spec.quant_min, spec.quant_max, *clip, factor
        )
        return compiled
    result: Tensor = _Learned.apply(x, scale, offset, zero_point, spec, clip, factor)
    if result.requires_grad:
        # The unquantized values are saved anyway, for the gradient of the scale.
        values, step = x.detach(), scale.detach()
        make_recomputable(
            result,
            lambda: _learned(values, step, zero_point, spec, clip),
            (values, step, zero_point),
        )
    return result


def _learned(x: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec, clip: Clip) -> Tensor:
    y = torch.empty_like(x)
    _activation(x, y, None, scale, zero_point, spec, clip, None)
    return y


class _Learned(torch.autograd.Function):
    """The gradients of `dq.quant.quantizers.learned_step`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        offset: Tensor | None,
        zero_point: Tensor,
        spec: QuantSpec,
        clip: Clip,
        factor: float,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.spec, ctx.clip, ctx.factor, ctx.has_offset = spec, clip, factor, offset is not None
        return _learned(x, scale, zero_point, spec, clip)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, scale, zero_point = ctx.saved_tensors
        d_x, d_scale, d_offset = native_ops.learned_gradients(
            gradients[0],
            x,
            scale,
            zero_point,
            ctx.spec.quant_min,
            ctx.spec.quant_max,
            ctx.clip[0],
            ctx.clip[1],
            ctx.has_offset,
            ctx.factor,
        )
        return d_x, d_scale, d_offset if ctx.has_offset else None, None, None, None, None


def fake_quantize_weight(
    weight: Tensor,
    factor: Tensor | None,
    spec: QuantSpec,
    *,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    unfolds: bool = False,
    scale_factor: float = 1.0,
) -> Tensor:
    """Multiply a weight by its fold factor and fake-quantize the product.

    Args:
        weight: ``(output channels, ...)``, float32, contiguous.
        factor: ``(output channels,)``; None if nothing is folded.
        spec: The integer format; per tensor or with channel axis 0.
        scale: ``()`` or ``(output channels,)``; None computes it from the product's range.
        zero_point: Like ``scale``, int32.
        unfolds: Divide by the factor again; a channel with a factor near zero keeps its weight.
        scale_factor: Multiplies the gradient of ``scale``.

    Returns:
        A tensor of the shape and dtype of ``weight``.
    """
    unfolds = unfolds and factor is not None
    if torch.compiler.is_compiling():
        compiled: Tensor = native_ops.weight(
            weight, factor, scale, zero_point, integers_of(spec), unfolds, scale_factor
        )
        return compiled
    rounded: Tensor = _Weight.apply(weight, factor, scale, zero_point, spec, unfolds, scale_factor)
    if torch.is_grad_enabled():
        w = weight.detach()
        f, s, z = (t if t is None else t.detach() for t in (factor, scale, zero_point))
        integers = integers_of(spec)
        make_recomputable(
            rounded,
            lambda: native_ops.rounded_weight(w, f, s, z, integers, unfolds),
            [t for t in (w, f, s, z) if t is not None],
        )
    return rounded


def integers_of(spec: QuantSpec) -> list[int]:
    """Return the integer format as the weight kernels take it."""
    per_channel = spec.channel_axis is not None
    flags = (spec.signed, spec.symmetric, spec.power_of_two, per_channel)
    return [spec.quant_min, spec.quant_max, *map(int, flags)]


class _Weight(torch.autograd.Function):
    """Gradients of the weight, of the fold factor and of a given scale."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        factor: Tensor | None,
        scale: Tensor | None,
        zero_point: Tensor | None,
        spec: QuantSpec,
        unfolds: bool,
        scale_factor: float,
    ) -> Tensor:
        ctx.save_for_backward(weight, factor, scale, zero_point)
        ctx.spec, ctx.unfolds, ctx.scale_factor = spec, unfolds, scale_factor
        return native_ops.rounded_weight(
            weight, factor, scale, zero_point, integers_of(spec), unfolds
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        wanted = list(ctx.needs_input_grad[1:3])
        weight, factor, scale, zero_point = ctx.saved_tensors
        d_weight, d_factor, d_scale = native_ops.weight_gradients(
            gradients[0],
            weight,
            factor,
            scale,
            zero_point,
            integers_of(ctx.spec),
            ctx.unfolds,
            ctx.scale_factor,
            wanted,
        )
        factor_and_scale = (
            g if wants else None for g, wants in zip((d_factor, d_scale), wanted, strict=True)
        )
        return d_weight, *factor_and_scale, None, None, None, None
