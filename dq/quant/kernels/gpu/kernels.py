"""The kernels of `dq.quant.kernels.native` for a GPU, written in Triton.

They use the order of operations of torch's operators, so forward results are equal bit for bit;
sums (gradients of scales and factors) differ by rounding. Two things are needed for this: division
rounds to nearest (``tl.div_rn``), and callers disable fused multiply-add
(``enable_fp_fusion=False``). With ``TRITON_INTERPRET=1`` the same source runs on a CPU.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Adding and subtracting it rounds a float32 below 2**22 to an integer, half to even.
_ROUNDER = tl.constexpr(12582912.0)
_ROUNDER_LIMIT = tl.constexpr(4194304.0)
_LARGEST = tl.constexpr(3.4028234663852886e38)
_SMALLEST_SCALE = tl.constexpr(2.0**-120)
_SMALLEST_FACTOR = tl.constexpr(1e-12)


@triton.jit
def _clipped(x, low, high):  # A NaN stays a NaN.
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@triton.jit
def _passes(x, low, high):  # The gradient mask of ReLU and Hardtanh.
    return ((x <= low) | (x >= high)) == 0


@triton.jit
def _rounded(x):
    # Larger values lie outside every quantization range and are clamped in any case.
    return tl.where(tl.abs(x) < _ROUNDER_LIMIT, (x + _ROUNDER) - _ROUNDER, x)


@triton.jit
def _integer_of(x, inverse, zero_point):
    return _rounded(x * inverse) + zero_point


@triton.jit
def _limited(integer, quant_min, quant_max):  # A NaN becomes quant_min.
    integer = tl.where(integer > quant_min, integer, quant_min)
    return tl.where(integer < quant_max, integer, quant_max)


@triton.jit
def activation(
    x_ptr, y_ptr, mask_ptr, scale_ptr, zero_point_ptr, partial_ptr,
    n, quant_min, quant_max, clip_low, clip_high,
    ROUNDS: tl.constexpr, WRITES: tl.constexpr, MASKS: tl.constexpr, OBSERVES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Clip and fake-quantize a block of values, with its gradient mask, minimum and maximum."""
    block = tl.program_id(0)
    offsets = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = offsets < n
    x = tl.load(x_ptr + offsets, mask=here, other=0.0)
    c = _clipped(x, clip_low, clip_high)
    if ROUNDS:
        scale = tl.load(scale_ptr)
        zero_point = tl.load(zero_point_ptr).to(tl.float32)
        low, high = quant_min.to(tl.float32), quant_max.to(tl.float32)
        integer = _integer_of(c, tl.div_rn(1.0, scale), zero_point)
        tl.store(y_ptr + offsets, (_limited(integer, low, high) - zero_point) * scale, mask=here)
        if MASKS:
            passes = (integer >= low) & (integer <= high) & _passes(x, clip_low, clip_high)
            tl.store(mask_ptr + offsets, passes.to(tl.uint8), mask=here)
    else:
        if WRITES:
            tl.store(y_ptr + offsets, c, mask=here)
        if MASKS:
            passes = _passes(x, clip_low, clip_high)
            tl.store(mask_ptr + offsets, passes.to(tl.uint8), mask=here)
    if OBSERVES:
        # If a value of the block is not finite, min > max marks the block.
        sound = tl.min((tl.abs(c) <= _LARGEST).to(tl.int32), axis=0) > 0
        lowest = tl.min(tl.where(here & (c == c), c, float("inf")), axis=0)
        highest = tl.max(tl.where(here & (c == c), c, float("-inf")), axis=0)
        tl.store(partial_ptr + 2 * block, tl.where(sound, lowest, float("-inf")))
        tl.store(partial_ptr + 2 * block + 1, tl.where(sound, highest, float("inf")))


@triton.jit
def record(partial_ptr, min_ptr, max_ptr, num_blocks, BLOCK: tl.constexpr):
    """Widen the recorded range by the ranges of all blocks, unless one of them is not finite."""
    lowest = tl.full((BLOCK,), float("inf"), tl.float32)
    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    for begin in range(0, num_blocks, BLOCK):
        offsets = begin + tl.arange(0, BLOCK)
        here = offsets < num_blocks
        low = tl.load(partial_ptr + 2 * offsets, mask=here, other=float("inf"))
        high = tl.load(partial_ptr + 2 * offsets + 1, mask=here, other=float("-inf"))
        lowest, highest = tl.minimum(lowest, low), tl.maximum(highest, high)
    low, high = tl.min(lowest, axis=0), tl.max(highest, axis=0)
    sound = (tl.abs(low) <= _LARGEST) & (tl.abs(high) <= _LARGEST)
    old_low, old_high = tl.load(min_ptr), tl.load(max_ptr)
    tl.store(min_ptr, tl.where(sound, tl.minimum(old_low, low), old_low))
    tl.store(max_ptr, tl.where(sound, tl.maximum(old_high, high), old_high))


@triton.jit
def masked(gradient_ptr, mask_ptr, result_ptr, n, BLOCK: tl.constexpr):
    """Write the gradient where the mask is 1 and zero elsewhere."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = offsets < n
    mask = tl.load(mask_ptr + offsets, mask=here, other=0)
    gradient = tl.load(gradient_ptr + offsets, mask=here & (mask != 0), other=0.0)
    tl.store(result_ptr + offsets, gradient, mask=here)


@triton.jit
def learned_backward(
    gradient_ptr, x_ptr, result_ptr, scale_ptr, zero_point_ptr, partial_ptr,
    n, quant_min, quant_max, clip_low, clip_high,
    HAS_OFFSET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the values, and a block's part of the sums for scale and offset."""
    block = tl.program_id(0)
    offsets = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = offsets < n
    x = tl.load(x_ptr + offsets, mask=here, other=0.0)
    upstream = tl.load(gradient_ptr + offsets, mask=here, other=0.0)
    zero_point = tl.load(zero_point_ptr).to(tl.float32)
    low, high = quant_min.to(tl.float32), quant_max.to(tl.float32)
    steps = _clipped(x, clip_low, clip_high) * tl.div_rn(1.0, tl.load(scale_ptr))
    integer = _rounded(steps) + zero_point
    inside = (integer >= low) & (integer <= high)
    beyond = _limited(integer, low, high)
    if not HAS_OFFSET:
        beyond = beyond - zero_point
    by_scale = upstream * tl.where(inside, integer - zero_point - steps, beyond)
    by_offset = tl.where(inside, 0.0, upstream)
    tl.store(partial_ptr + 2 * block, tl.sum(tl.where(here, by_scale, 0.0), axis=0))
    tl.store(partial_ptr + 2 * block + 1, tl.sum(by_offset, axis=0))
    passes = inside & _passes(x, clip_low, clip_high)
    tl.store(result_ptr + offsets, tl.where(passes, upstream, 0.0), mask=here)


@triton.jit
def _next_power_of_two(x):
    mantissa: tl.constexpr = 8388607
    bits = (x.to(tl.int32, bitcast=True) + mantissa) & (-8388608)
    return tl.where(tl.abs(x) <= _LARGEST, bits.to(tl.float32, bitcast=True), x)


@triton.jit
def _row_range(weight_ptr, factor, columns, BLOCK: tl.constexpr):
    """Return the minimum and maximum of a folded row, and its number of NaNs."""
    low = tl.full((BLOCK,), float("inf"), tl.float32)
    high = tl.full((BLOCK,), float("-inf"), tl.float32)
    nans = tl.zeros((BLOCK,), tl.int32)
    for begin in range(0, columns, BLOCK):
        offsets = begin + tl.arange(0, BLOCK)
        here = offsets < columns
        v = tl.load(weight_ptr + offsets, mask=here, other=0.0) * factor
        low = tl.minimum(low, tl.where(here & (v == v), v, float("inf")))
        high = tl.maximum(high, tl.where(here & (v == v), v, float("-inf")))
        nans += (here & (v != v)).to(tl.int32)
    return tl.min(low, axis=0), tl.max(high, axis=0), tl.sum(nans, axis=0)


@triton.jit
def _grid_of_row(
    weight_ptr, scale_ptr, zero_point_ptr, index, factor, columns, quant_min, quant_max,
    GIVEN: tl.constexpr, SIGNED: tl.constexpr, SYMMETRIC: tl.constexpr,
    POWER_OF_TWO: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return scale and zero point of a row; see `dq.quant.numerics.affine.scale_and_zero_point`."""
    if GIVEN:
        return tl.load(scale_ptr + index), tl.load(zero_point_ptr + index).to(tl.float32)
    range_min, range_max, nans = _row_range(weight_ptr, factor, columns, BLOCK)
    limit = _LARGEST / 4
    low = tl.minimum(tl.maximum(range_min, -limit), 0.0)
    high = tl.maximum(tl.minimum(range_max, limit), 0.0)
    if SYMMETRIC and SIGNED:
        width, levels = tl.maximum(-low, high), quant_max
    elif SYMMETRIC:
        width, levels = high, quant_max - quant_min
    else:
        width, levels = high - low, quant_max - quant_min
    empty = (width <= 0) | (range_min > range_max)
    scale = tl.where(empty, 1.0, tl.div_rn(width, levels))
    scale = tl.maximum(scale, _SMALLEST_SCALE)
    if POWER_OF_TWO:
        scale = _next_power_of_two(scale)
    zero_point = 0.0
    if not SYMMETRIC:
        zero_point = tl.where(empty, 0.0, _rounded(quant_min - tl.div_rn(low, scale)))
        zero_point = tl.minimum(tl.maximum(zero_point, quant_min), quant_max)
    # A NaN must show in the loss.
    return tl.where(nans > 0, float("nan"), scale), tl.where(nans > 0, 0.0, zero_point)


@triton.jit
def _round_row(
    weight_ptr, result_ptr, scale_ptr, zero_point_ptr, index, factor, columns,
    quant_min, quant_max,
    GIVEN: tl.constexpr, SIGNED: tl.constexpr, SYMMETRIC: tl.constexpr,
    POWER_OF_TWO: tl.constexpr, UNFOLDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fold, fake-quantize and unfold a row, whose weights and results begin at the pointers.

    ``index`` is that of its scale and zero point.
    """
    low, high = quant_min.to(tl.float32), quant_max.to(tl.float32)
    scale, zero_point = _grid_of_row(
        weight_ptr, scale_ptr, zero_point_ptr, index, factor, columns, low, high,
        GIVEN, SIGNED, SYMMETRIC, POWER_OF_TWO, BLOCK,
    )  # fmt: skip
    inverse = tl.div_rn(1.0, scale)
    for begin in range(0, columns, BLOCK):
        offsets = begin + tl.arange(0, BLOCK)
        here = offsets < columns
        w = tl.load(weight_ptr + offsets, mask=here, other=0.0)
        integer = _integer_of(w * factor, inverse, zero_point)
        y = (_limited(integer, low, high) - zero_point) * scale
        if UNFOLDS:
            # A dead channel keeps its float weight: all its integers would be zero.
            y = tl.where(tl.abs(factor) < _SMALLEST_FACTOR, w, tl.div_rn(y, y * 0.0 + factor))
        tl.store(result_ptr + offsets, y, mask=here)


@triton.jit
def _row_gradients(
    gradient_ptr, weight_ptr, d_weight_ptr, d_factor_ptr, d_scale_ptr, scale_ptr, zero_point_ptr,
    index, factor, columns, quant_min, quant_max,
    GIVEN: tl.constexpr, SIGNED: tl.constexpr, SYMMETRIC: tl.constexpr,
    POWER_OF_TWO: tl.constexpr, UNFOLDS: tl.constexpr,
    WANTS_FACTOR: tl.constexpr, WANTS_SCALE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradients of a row and of its factor, and its part of the scale's."""
    low, high = quant_min.to(tl.float32), quant_max.to(tl.float32)
    scale, zero_point = _grid_of_row(
        weight_ptr, scale_ptr, zero_point_ptr, index, factor, columns, low, high,
        GIVEN, SIGNED, SYMMETRIC, POWER_OF_TWO, BLOCK,
    )  # fmt: skip
    inverse = tl.div_rn(1.0, scale)
    by_factor = tl.zeros((BLOCK,), tl.float32)
    by_scale = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, columns, BLOCK):
        offsets = begin + tl.arange(0, BLOCK)
        here = offsets < columns
        w = tl.load(weight_ptr + offsets, mask=here, other=0.0)
        upstream = tl.load(gradient_ptr + offsets, mask=here, other=0.0)
        steps = w * factor * inverse
        integer = _rounded(steps) + zero_point
        limited = _limited(integer, low, high)
        passes = (integer >= low) & (integer <= high)
        if UNFOLDS:
            passes = tl.where(tl.abs(factor) < _SMALLEST_FACTOR, here, passes)
        if SYMMETRIC and SIGNED and not GIVEN:
            passes = here  # The range comes from the weight, so every value lies inside.
        kept = tl.where(passes, upstream, 0.0)
        tl.store(d_weight_ptr + offsets, kept if UNFOLDS else kept * factor, mask=here)
        if WANTS_FACTOR:
            part = tl.where(passes, w, 0.0)
            if UNFOLDS:
                part = part - tl.div_rn((limited - zero_point) * scale, w * 0.0 + factor)
            by_factor += tl.where(here, upstream * part, 0.0)
        if WANTS_SCALE:
            within, beyond = integer - zero_point - steps, limited - zero_point
            inside = (integer >= low) & (integer <= high)
            by_scale += tl.where(here, upstream * tl.where(inside, within, beyond), 0.0)
    divisor = factor if UNFOLDS else 1.0
    if WANTS_FACTOR:
        d_factor = tl.sum(by_factor, axis=0) / divisor
        if UNFOLDS:
            d_factor = tl.where(tl.abs(factor) < _SMALLEST_FACTOR, 0.0, d_factor)
        tl.store(d_factor_ptr, d_factor)
    if WANTS_SCALE:
        d_scale = tl.sum(by_scale, axis=0) / divisor
        if UNFOLDS:
            d_scale = tl.where(tl.abs(factor) < _SMALLEST_FACTOR, 0.0, d_scale)
        tl.store(d_scale_ptr, d_scale)


@triton.jit
def weight(
    weight_ptr, factor_ptr, scale_ptr, zero_point_ptr, result_ptr, columns, quant_min, quant_max,
    GIVEN: tl.constexpr, PER_CHANNEL: tl.constexpr, SIGNED: tl.constexpr,
    SYMMETRIC: tl.constexpr, POWER_OF_TWO: tl.constexpr,
    FOLDS: tl.constexpr, UNFOLDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fold, fake-quantize and unfold one row of a weight."""
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(factor_ptr + row) if FOLDS else 1.0
    begin = row * columns
    _round_row(
        weight_ptr + begin, result_ptr + begin, scale_ptr, zero_point_ptr,
        row if PER_CHANNEL else 0, factor, columns, quant_min, quant_max,
        GIVEN, SIGNED, SYMMETRIC, POWER_OF_TWO, UNFOLDS, BLOCK,
    )  # fmt: skip


@triton.jit
def weight_backward(
    gradient_ptr, weight_ptr, factor_ptr, scale_ptr, zero_point_ptr,
    d_weight_ptr, d_factor_ptr, d_scale_ptr, columns, quant_min, quant_max,
    GIVEN: tl.constexpr, PER_CHANNEL: tl.constexpr, SIGNED: tl.constexpr,
    SYMMETRIC: tl.constexpr, POWER_OF_TWO: tl.constexpr,
    FOLDS: tl.constexpr, UNFOLDS: tl.constexpr,
    WANTS_FACTOR: tl.constexpr, WANTS_SCALE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradients of a row of a weight and of its factor, and its part of the scale's."""
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(factor_ptr + row) if FOLDS else 1.0
    begin = row * columns
    _row_gradients(
        gradient_ptr + begin, weight_ptr + begin, d_weight_ptr + begin, d_factor_ptr + row,
        d_scale_ptr + row, scale_ptr, zero_point_ptr, row if PER_CHANNEL else 0, factor, columns,
        quant_min, quant_max,
        GIVEN, SIGNED, SYMMETRIC, POWER_OF_TWO, UNFOLDS, WANTS_FACTOR, WANTS_SCALE, BLOCK,
    )  # fmt: skip


@triton.jit
def weights(
    table_ptr, factor_ptr, scale_ptr, zero_point_ptr, result_ptr, quant_min, quant_max,
    GIVEN: tl.constexpr, SIGNED: tl.constexpr, SYMMETRIC: tl.constexpr,
    POWER_OF_TWO: tl.constexpr, FOLDS: tl.constexpr, UNFOLDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Do the same as `weight` for one row of many weights.

    For each row the table has its address, its place in the result, and its length. Factors,
    scales and zero points have one value for each row.
    """
    row = tl.program_id(0).to(tl.int64)
    entry = table_ptr + 3 * row
    weight_ptr = tl.load(entry).to(tl.pointer_type(tl.float32))
    factor = tl.load(factor_ptr + row) if FOLDS else 1.0
    _round_row(
        weight_ptr, result_ptr + tl.load(entry + 1), scale_ptr, zero_point_ptr, row, factor,
        tl.load(entry + 2), quant_min, quant_max,
        GIVEN, SIGNED, SYMMETRIC, POWER_OF_TWO, UNFOLDS, BLOCK,
    )  # fmt: skip


@triton.jit
def weights_backward(
    table_ptr, gradient_ptr, factor_ptr, scale_ptr, zero_point_ptr,
    d_weight_ptr, d_factor_ptr, d_scale_ptr, quant_min, quant_max,
    GIVEN: tl.constexpr, SIGNED: tl.constexpr, SYMMETRIC: tl.constexpr,
    POWER_OF_TWO: tl.constexpr, FOLDS: tl.constexpr, UNFOLDS: tl.constexpr,
    WANTS_FACTOR: tl.constexpr, WANTS_SCALE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Do the same as `weight_backward` for one row of many weights; see `weights`."""
    row = tl.program_id(0).to(tl.int64)
    entry = table_ptr + 3 * row
    weight_ptr = tl.load(entry).to(tl.pointer_type(tl.float32))
    begin = tl.load(entry + 1)
    factor = tl.load(factor_ptr + row) if FOLDS else 1.0
    _row_gradients(
        gradient_ptr + begin, weight_ptr, d_weight_ptr + begin, d_factor_ptr + row,
        d_scale_ptr + row, scale_ptr, zero_point_ptr, row, factor, tl.load(entry + 2),
        quant_min, quant_max,
        GIVEN, SIGNED, SYMMETRIC, POWER_OF_TWO, UNFOLDS, WANTS_FACTOR, WANTS_SCALE, BLOCK,
    )  # fmt: skip
