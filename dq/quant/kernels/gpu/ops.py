"""The GPU kernels, with the functions and arguments of the CPU kernels.

See `dq.quant.kernels.operators` for what each returns. All tensors lie on one GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from dq.quant.kernels.gpu import kernels
from dq.quant.numerics.affine import range_over, scale_and_zero_point
from dq.quant.numerics.spec import QuantSpec

BLOCK = 2048
# Factor, scale and zero point of the rows of many weights.
OfRows = tuple[Tensor | None, Tensor | None, Tensor | None]
# A fused multiply-add rounds once and would differ from torch's operators.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": False}


def activate(
    x: Tensor,
    y: Tensor | None,
    mask: Tensor | None,
    scale: Tensor | None,
    zero_point: Tensor | None,
    integers_and_clip: tuple[int, int, float, float],
    record: tuple[Tensor, Tensor] | None,
) -> None:
    """Clip ``x``; optionally record its extremes and fake-quantize it into ``y``."""
    n = x.numel()
    if n == 0:
        return
    num_blocks = triton.cdiv(n, BLOCK)
    partial = None if record is None else x.new_empty(2 * num_blocks)
    kernels.activation[(num_blocks,)](
        x, y, mask, scale, zero_point, partial, n, *integers_and_clip,
        ROUNDS=scale is not None, WRITES=y is not None, MASKS=mask is not None,
        OBSERVES=record is not None, BLOCK=BLOCK, **OPTIONS,
    )  # fmt: skip
    if record is not None:
        kernels.record[(1,)](partial, *record, num_blocks, BLOCK=1024, **OPTIONS)


def masked_gradient(gradient: Tensor, mask: Tensor) -> Tensor:
    """Return the gradient where the mask is 1, zero elsewhere, in the mask's memory layout."""
    result = torch.empty_like(gradient)
    n = gradient.numel()
    if n:
        grid = (triton.cdiv(n, BLOCK),)
        kernels.masked[grid](gradient, mask, result, n, BLOCK=BLOCK, **OPTIONS)
    return result


def learned_gradients(
    gradient: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    integers_and_clip: tuple[int, int, float, float],
    has_offset: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of dense values, and the sums for scale and offset, ``(2,)``."""
    result = torch.empty_like(gradient)
    n = x.numel()
    if n == 0:
        return result, x.new_zeros(2)
    num_blocks = triton.cdiv(n, BLOCK)
    partial = x.new_empty(num_blocks, 2)
    kernels.learned_backward[(num_blocks,)](
        gradient, x, result, scale, zero_point, partial, n, *integers_and_clip,
        HAS_OFFSET=has_offset, BLOCK=BLOCK, **OPTIONS,
    )  # fmt: skip
    return result, partial.sum(0)


def rounded_weight(
    weight: Tensor,
    factor: Tensor | None,
    scale: Tensor | None,
    zero_point: Tensor | None,
    integers: list[int],
    unfolds: bool,
) -> Tensor:
    """Return a dense weight folded, fake-quantized and unfolded."""
    result = torch.empty_like(weight)
    if weight.numel() == 0:
        return result
    scale, zero_point = _given_scale(weight, factor, scale, zero_point, integers)
    columns = weight.numel() // len(weight)
    kernels.weight[(len(weight),)](
        weight, factor, scale, zero_point, result, columns, integers[0], integers[1],
        **_constants(columns, factor, scale, integers, unfolds),
    )  # fmt: skip
    return result


def weight_gradients(
    gradient: Tensor,
    weight: Tensor,
    factor: Tensor | None,
    scale: Tensor | None,
    zero_point: Tensor | None,
    integers: list[int],
    unfolds: bool,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a dense weight, of its factor and, per row, of the scale."""
    rows = len(weight)
    d_weight = torch.empty_like(weight)
    d_factor = weight.new_zeros(rows if wanted[0] else 0)
    d_scale = weight.new_zeros(rows if wanted[1] else 0)
    if weight.numel() == 0:
        return d_weight, d_factor, d_scale
    scale, zero_point = _given_scale(weight, factor, scale, zero_point, integers)
    columns = weight.numel() // rows
    kernels.weight_backward[(rows,)](
        gradient, weight, factor, scale, zero_point, d_weight, d_factor, d_scale, columns,
        integers[0], integers[1],
        **_constants(columns, factor, scale, integers, unfolds),
        WANTS_FACTOR=wanted[0], WANTS_SCALE=wanted[1],
    )  # fmt: skip
    return d_weight, d_factor, d_scale


def rounded_weights(
    weights: list[Tensor],
    table: Tensor,
    of_rows: OfRows,
    integers: list[int],
    unfolds: bool,
) -> Tensor:
    """Return many dense weights folded, fake-quantized and unfolded, one after another, flat.

    Args:
        weights: Each ``(output channels, ...)``, with at least one value.
        table: int64 ``(rows, 3)``, a row for each output channel: address, place in the result,
            number of values.
        of_rows: Factor, scale and zero point of each row, ``(rows,)``. Without a factor nothing is
            folded; without a scale it is computed from the row's range.
        integers: As for `rounded_weight`.
        unfolds: As for `rounded_weight`.
    """
    result = weights[0].new_empty(sum(w.numel() for w in weights))
    kernels.weights[(len(table),)](
        table, *of_rows, result, integers[0], integers[1],
        **_constants_of_all(weights, of_rows, integers, unfolds),
    )  # fmt: skip
    return result


def weights_gradients(
    gradient: Tensor,
    weights: list[Tensor],
    table: Tensor,
    of_rows: OfRows,
    integers: list[int],
    unfolds: bool,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of many weights, flat, and the gradients of each row's factor and scale.

    Args:
        gradient: Of the result of `rounded_weights`, flat.
        weights: As for `rounded_weights`.
        table: As for `rounded_weights`.
        of_rows: As for `rounded_weights`.
        integers: As for `rounded_weights`.
        unfolds: As for `rounded_weights`.
        wanted: Whether to compute the gradients of the factor and of the scale.
    """
    rows = len(table)
    d_weights = torch.empty_like(gradient)
    d_factor = gradient.new_empty(rows if wanted[0] else 0)
    d_scale = gradient.new_empty(rows if wanted[1] else 0)
    kernels.weights_backward[(rows,)](
        table, gradient, *of_rows, d_weights, d_factor, d_scale,
        integers[0], integers[1],
        **_constants_of_all(weights, of_rows, integers, unfolds),
        WANTS_FACTOR=wanted[0], WANTS_SCALE=wanted[1],
    )  # fmt: skip
    return d_weights, d_factor, d_scale


def _constants_of_all(
    weights: list[Tensor], of_rows: OfRows, integers: list[int], unfolds: bool
) -> dict[str, Any]:
    columns = max(w.numel() // len(w) for w in weights)
    constants = _constants(columns, *of_rows[:2], integers, unfolds)
    del constants["PER_CHANNEL"]
    return constants


def _given_scale(
    weight: Tensor,
    factor: Tensor | None,
    scale: Tensor | None,
    zero_point: Tensor | None,
    integers: list[int],
) -> tuple[Tensor | None, Tensor | None]:
    """Return scale and zero point; compute them if the weight has one range for all its rows."""
    quant_min, quant_max, signed, symmetric, power_of_two, per_channel = integers
    if scale is not None or per_channel:
        return scale, zero_point
    folded = weight
    if factor is not None:
        folded = weight * factor.reshape(-1, *[1] * (weight.dim() - 1))
    spec = QuantSpec(
        bits=quant_max.bit_length() + signed,
        signed=bool(signed),
        symmetric=bool(symmetric),
        power_of_two=bool(power_of_two),
        narrow=quant_min == (-quant_max if signed else 1),
    )
    return scale_and_zero_point(*range_over(folded, None), spec)


def _constants(
    columns: int,
    factor: Tensor | None,
    scale: Tensor | None,
    integers: list[int],
    unfolds: bool,
) -> dict[str, Any]:
    signed, symmetric, power_of_two, per_channel = map(bool, integers[2:])
    return {
        "GIVEN": scale is not None,
        "PER_CHANNEL": per_channel,
        "SIGNED": signed,
        "SYMMETRIC": symmetric,
        "POWER_OF_TWO": power_of_two,
        "FOLDS": factor is not None,
        "UNFOLDS": unfolds,
        "BLOCK": min(1024, max(32, triton.next_power_of_2(columns))),
        **OPTIONS,
    }
