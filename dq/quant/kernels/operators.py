"""The native kernels as custom operators, which torch.compile keeps as one node each.

On a CPU, code that torch.compile generates for fake quantization is several times slower than the
kernels (torch 2.14: rounding to 64-bit integers is not vectorized). The compiler still fuses norms
and activation functions. In eager mode `dq.quant.kernels.rounding` calls the kernels directly,
which costs less and can write in place.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from dq.native import dense, pointer, with_layout_of, with_promised_strides
from dq.quant.kernels.native import call

# Any memory layout is accepted, so torch.compile need not restore the one of eager mode.
LAYOUTS = (torch.Tag.flexible_layout,)


def _on_gpu() -> Any:
    """Return the same functions for tensors on a GPU. Triton is imported only here."""
    from dq.quant.kernels.gpu import ops

    return ops


def activate(
    x: Tensor,
    y: Tensor | None,
    mask: Tensor | None,
    scale: Tensor | None,
    zero_point: Tensor | None,
    integers_and_clip: tuple[int, int, float, float],
    record: tuple[Tensor, Tensor] | None,
) -> None:
    """Clip ``x``; optionally record its extremes and fake-quantize it into ``y``.

    Args:
        x: Dense, like ``y`` and ``mask``.
        y: The result; None only records.
        mask: Set to 1 where gradients pass (uint8).
        scale: ``()``; None does not fake-quantize.
        zero_point: ``()``.
        integers_and_clip: quant_min, quant_max, lower and upper bound of the clip.
        record: Minimum and maximum so far, updated in place.
    """
    if x.is_cuda:
        _on_gpu().activate(x, y, mask, scale, zero_point, integers_and_clip, record)
        return
    quant_min, quant_max, *clip = integers_and_clip
    low, high = (None, None) if record is None else record
    call(
        "dq_activation",
        *(pointer(x), pointer(y), pointer(mask), x.numel(), *clip),
        *(pointer(scale), pointer(zero_point), quant_min, quant_max, pointer(low), pointer(high)),
    )


@torch.library.custom_op("dq::activation", mutates_args=(), tags=LAYOUTS)
def activation(
    x: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    quant_min: int,
    quant_max: int,
    clip_low: float,
    clip_high: float,
    observes: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Clip ``x`` and fake-quantize it, or only clip it if ``scale`` is None.

    Returns:
        The result, the gradient mask (uint8), and the minimum and maximum, ``(2,)``. The last is
        neutral (+inf, -inf) if ``observes`` is False or a value is not finite.
    """
    source = dense(x)
    y, mask = torch.empty_like(source), torch.empty_like(source, dtype=torch.uint8)
    extremes = source.new_tensor([torch.inf, -torch.inf])
    record = (extremes[:1], extremes[1:]) if observes else None
    integers_and_clip = quant_min, quant_max, clip_low, clip_high
    activate(source, y, mask, scale, zero_point, integers_and_clip, record)
    return with_promised_strides(y, x), with_promised_strides(mask, x), extremes


@activation.register_fake
def _(
    x: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    quant_min: int,
    quant_max: int,
    clip_low: float,
    clip_high: float,
    observes: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x, dtype=torch.uint8), x.new_empty(2)


def masked_gradient(gradient: Tensor, mask: Tensor) -> Tensor:
    """Return the gradient where the mask is 1, zero elsewhere, in the mask's memory layout."""
    gradient = with_layout_of(gradient, mask)
    if gradient.is_cuda:
        on_gpu: Tensor = _on_gpu().masked_gradient(gradient, mask)
        return on_gpu
    result = torch.empty_like(gradient)
    call("dq_masked", pointer(gradient), pointer(mask), pointer(result), gradient.numel())
    return result


masked = torch.library.custom_op("dq::masked", masked_gradient, mutates_args=(), tags=LAYOUTS)


@masked.register_fake
def _(gradient: Tensor, mask: Tensor) -> Tensor:
    return torch.empty_like(mask, dtype=gradient.dtype)


def _keep_mask(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.save_for_backward(output[1])


def _pass_masked(ctx: Any, gradient: Tensor, *_: Tensor | None) -> tuple[Any, ...]:
    return masked(gradient, *ctx.saved_tensors), *[None] * 7


activation.register_autograd(_pass_masked, setup_context=_keep_mask)


@torch.library.custom_op("dq::learned", mutates_args=(), tags=LAYOUTS)
def learned(
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    clip_low: float,
    clip_high: float,
    factor: Tensor,
) -> Tensor:
    """Clip ``x`` and fake-quantize it with a learned scale and, if given, offset; per tensor."""
    source = dense(x)
    y = torch.empty_like(source)
    integers_and_clip = quant_min, quant_max, clip_low, clip_high
    activate(source, y, None, scale, zero_point, integers_and_clip, None)
    return with_promised_strides(y, x)


@learned.register_fake
def _(
    x: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    clip_low: float,
    clip_high: float,
    factor: Tensor,
) -> Tensor:
    return torch.empty_like(x)


def learned_gradients(
    gradient: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    clip_low: float,
    clip_high: float,
    has_offset: bool,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the values, of the scale ``()`` and of the offset ``()``."""
    source = dense(x)
    gradient = with_layout_of(gradient, source)
    if source.is_cuda:
        integers_and_clip = quant_min, quant_max, clip_low, clip_high
        d_x, sums = _on_gpu().learned_gradients(
            gradient, source, scale, zero_point, integers_and_clip, has_offset
        )
        d_scale, d_offset = (sums * factor).unbind()
        return with_promised_strides(d_x, x), d_scale, d_offset
    result = torch.empty_like(gradient)
    by_scale, by_offset = ctypes.c_double(), ctypes.c_double()
    call(
        "dq_learned_backward",
        *(pointer(gradient), pointer(source), pointer(result), source.numel()),
        *(clip_low, clip_high, pointer(scale), pointer(zero_point), quant_min, quant_max),
        *(has_offset, ctypes.addressof(by_scale), ctypes.addressof(by_offset)),
    )
    d_scale = scale.new_tensor(by_scale.value * factor)
    return with_promised_strides(result, x), d_scale, scale.new_tensor(by_offset.value * factor)


@torch.library.custom_op("dq::learned_backward", mutates_args=(), tags=LAYOUTS)
def learned_backward(
    gradient: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    factor: Tensor,
    quant_min: int,
    quant_max: int,
    clip_low: float,
    clip_high: float,
    has_offset: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result of `learned_gradients`; the factor is a float64 tensor ``()``."""
    rest = (quant_min, quant_max, clip_low, clip_high, has_offset)
    return learned_gradients(gradient, x, scale, zero_point, *rest, factor.item())


@learned_backward.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    factor: Tensor,
    quant_min: int,
    quant_max: int,
    clip_low: float,
    clip_high: float,
    has_offset: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x, dtype=gradient.dtype), scale.new_empty(()), scale.new_empty(())


def _keep_learned(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, offset, zero_point, *integers_and_clip, factor = inputs
    ctx.save_for_backward(x, scale, zero_point, factor)
    ctx.rest = (*integers_and_clip, offset is not None)


def _pass_learned(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    d_x, d_scale, d_offset = learned_backward(gradient, *ctx.saved_tensors, *ctx.rest)
    return d_x, d_scale, d_offset if ctx.rest[4] else None, *[None] * 6


learned.register_autograd(_pass_learned, setup_context=_keep_learned)


def rounded_weight(
    weight: Tensor,
    factor: Tensor | None,
    scale: Tensor | None,
    zero_point: Tensor | None,
    integers: list[int],
    unfolds: bool,
) -> Tensor:
    """Return the result of `weight`, for a dense weight."""
    if weight.is_cuda:
        on_gpu: Tensor = _on_gpu().rounded_weight(
            weight, factor, scale, zero_point, integers, unfolds
        )
        return on_gpu
    result, rows = torch.empty_like(weight), max(1, len(weight))
    call(
        "dq_weight",
        *(pointer(weight), pointer(factor), pointer(scale), pointer(zero_point)),
        *(rows, weight.numel() // rows, *integers, unfolds, pointer(result)),
    )
    return result


def rounded_weights(*arguments: Any) -> Tensor:
    """Return many weights on a GPU, rounded; see `dq.quant.kernels.gpu.ops.rounded_weights`."""
    found: Tensor = _on_gpu().rounded_weights(*arguments)
    return found


def weights_gradients(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of many weights; see `dq.quant.kernels.gpu.ops.weights_gradients`."""
    found: tuple[Tensor, Tensor, Tensor] = _on_gpu().weights_gradients(*arguments)
    return found


@torch.library.custom_op("dq::weight", mutates_args=(), tags=LAYOUTS)
def weight(
    weight: Tensor,
    factor: Tensor | None,
    scale: Tensor | None,
    zero_point: Tensor | None,
    integers: list[int],
    unfolds: bool,
    scale_factor: float,
) -> Tensor:
    """Fold, fake-quantize and unfold a weight; see `rounding.fake_quantize_weight`.

    Args:
        weight: ``(output channels, ...)``.
        factor: ``(output channels,)`` or None.
        scale: ``()`` or ``(output channels,)``; None computes it from the folded weight's range.
        zero_point: Like ``scale``.
        integers: quant_min, quant_max, and as 0 or 1: signed, symmetric, power_of_two, per channel.
        unfolds: Divide by the factor again.
        scale_factor: Multiplies the gradient of ``scale``.

    Returns:
        The result, in the memory layout of ``weight``.
    """
    result = rounded_weight(dense(weight), factor, scale, zero_point, integers, unfolds)
    return with_promised_strides(result, weight)


@weight.register_fake
def _(
    weight: Tensor,
    factor: Tensor | None,
    scale: Tensor | None,
    zero_point: Tensor | None,
    integers: list[int],
    unfolds: bool,
    scale_factor: float,
) -> Tensor:
    return torch.empty_like(weight)


def weight_gradients(
    gradient: Tensor,
    weight: Tensor,
    factor: Tensor | None,
    scale: Tensor | None,
    zero_point: Tensor | None,
    integers: list[int],
    unfolds: bool,
    scale_factor: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of weight, factor and scale; empty tensors for those not ``wanted``.

    Args:
        gradient: Of the result.
        weight: As for `weight`.
        factor: As for `weight`.
        scale: As for `weight`.
        zero_point: As for `weight`.
        integers: As for `weight`.
        unfolds: As for `weight`.
        scale_factor: As for `weight`.
        wanted: Whether to compute the gradients of the factor and of the scale.
    """
    rows = max(1, len(weight))
    source = dense(weight)
    gradient = with_layout_of(gradient, source)
    if source.is_cuda:
        d_weight, d_factor, sums = _on_gpu().weight_gradients(
            gradient, source, factor, scale, zero_point, integers, unfolds, wanted
        )
    else:
        d_weight = torch.empty_like(source)
        d_factor = weight.new_empty(rows if wanted[0] else 0)
        sums = weight.new_empty(rows if wanted[1] else 0, dtype=torch.float64)
        call(
            "dq_weight_backward",
            *(pointer(gradient), pointer(source), pointer(factor), pointer(scale)),
            *(pointer(zero_point), rows, weight.numel() // rows, *integers, unfolds),
            pointer(d_weight),
            *(pointer(d_factor) if wanted[0] else None, pointer(sums) if wanted[1] else None),
        )
    d_scale = weight.new_empty(0)
    if wanted[1] and scale is not None:
        total = sums.sum() if scale.dim() == 0 else sums
        d_scale = (total * scale_factor).to(scale.dtype).reshape(scale.shape)
    return with_promised_strides(d_weight, weight), d_factor, d_scale


weight_backward = torch.library.custom_op(
    "dq::weight_backward", weight_gradients, mutates_args=(), tags=LAYOUTS
)


@weight_backward.register_fake
def _(
    gradient: Tensor,
    weight: Tensor,
    factor: Tensor | None,
    scale: Tensor | None,
    zero_point: Tensor | None,
    integers: list[int],
    unfolds: bool,
    scale_factor: float,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    d_scale = torch.empty_like(scale) if wanted[1] and scale is not None else weight.new_empty(0)
    d_factor = weight.new_empty(len(weight) if wanted[0] else 0)
    return torch.empty_like(weight), d_factor, d_scale


def _keep_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    source, factor, scale, zero_point, *rest = inputs
    ctx.save_for_backward(source, factor, scale, zero_point)
    ctx.rest = rest
    ctx.wanted = [
        t is not None and wants
        for t, wants in zip((factor, scale), ctx.needs_input_grad[1:3], strict=True)
    ]


def _pass_weight(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    d_weight, d_factor, d_scale = weight_backward(
        gradient, *ctx.saved_tensors, *ctx.rest, ctx.wanted
    )
    wants_factor, wants_scale = ctx.wanted
    return (
        d_weight,
        d_factor if wants_factor else None,
        d_scale if wants_scale else None,
        *[None] * 4,
    )


weight.register_autograd(_pass_weight, setup_context=_keep_weight)
