"""Compute a function between two quantizers with tables of at most 256 entries.

An integer engine that does not fuse SiLU into the convolution before it quantizes three times:
after the convolution, after the sigmoid and after the product. As separate operations in training,
each would pass over memory in the forward and backward pass and save a tensor for the backward
pass. But after the first fake quantization a tensor has at most 256 different values. So function
and second quantizer are computed only for these values, and one pass over memory looks up the
results. The backward pass needs two bytes per value.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dq.native import Kernels, has_memory, is_dense, pointer, with_layout_of
from dq.quant.numerics.spec import QuantSpec

MOST_BITS = 8
_P, _I, _N, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_KERNELS = Kernels(
    Path(__file__).with_name("table.cpp"),
    {
        "dq_table": [_P, _P, _P, _N, _F, _I, _I, _I, *[_P] * 6, _I],
        "dq_table_backward": [_P, _P, _P, _N, _P, _I, _I],
    },
)
library = _KERNELS.library


def takes(x: Tensor) -> bool:
    """Return whether the kernel can be used for this tensor: float32, dense, on the CPU."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and has_memory(x)
        and is_dense(x)
        and library() is not None
    )


def grid_points(scale: Tensor, zero_point: Tensor, spec: QuantSpec) -> Tensor:
    """Return all possible values of a fake-quantized tensor, ascending, float32 ``(levels,)``."""
    return (_integers(spec.quant_min, spec.quant_max) - zero_point) * scale


@functools.cache
def _integers(lowest: int, highest: int) -> Tensor:
    return torch.arange(lowest, highest + 1, dtype=torch.float32)


def gate_tables(
    grid: Tensor, gate: tuple[Tensor, Tensor, QuantSpec], last: tuple[Tensor, Tensor, QuantSpec]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tables of SiLU as the product of a tensor and its fake-quantized sigmoid.

    The derivative is equal to that of autograd, but takes a fifth of the time.

    Args:
        grid: Result of `grid_points`.
        gate: Scale, zero point and integer format of the sigmoid's quantizer.
        last: The same of the product's quantizer.

    Returns:
        For each grid point: the product, the fake-quantized product, and the derivative of that.
    """
    sigmoid = torch.sigmoid(grid)
    rounded, passes_gate = _rounded(sigmoid, *gate)
    product = grid * rounded
    result, passes = _rounded(product, *last)
    derivative = sigmoid.mul(1 - sigmoid).mul_(passes_gate).mul_(grid).add_(rounded).mul_(passes)
    return product, result, derivative


def _rounded(
    values: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec
) -> tuple[Tensor, Tensor]:
    """Return the fake-quantized values, and the mask of the straight-through estimator."""
    found: tuple[Tensor, Tensor] = torch._fake_quantize_per_tensor_affine_cachemask_tensor_qparams(
        values, scale, zero_point, _enabled(), spec.quant_min, spec.quant_max
    )
    return found


@functools.cache
def _enabled() -> Tensor:
    return torch.ones(1, dtype=torch.long)


class Lookup(torch.autograd.Function):
    """Replace each value by the entry of a table at its nearest grid point."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        spec: QuantSpec,
        tables: tuple[Tensor, Tensor, Tensor],
        records: tuple[Tensor | None, ...],
        in_place: bool,
    ) -> Tensor:
        """Return the entries, in the shape and memory layout of ``x``.

        Args:
            ctx: Saves tensors for the backward pass.
            x: float32, dense.
            scale: Of the quantizer before the function, ``()``.
            zero_point: Of the same quantizer, ``()``.
            spec: Its integer format, of at most 8 bits.
            tables: For each grid point: the function's value, the value after the second quantizer,
                and the derivative of that.
            records: Minimum and maximum of ``x`` so far, then of the function's value, ``()`` each;
                updated in place. None is not recorded.
            in_place: ``x`` may be overwritten.
        """
        between, after, derivative = tables
        keeps = x.requires_grad
        index = torch.empty_like(x, dtype=torch.uint16) if keeps else None
        y = x if in_place else torch.empty_like(x)
        _KERNELS.call(
            "dq_table",
            *(pointer(x), pointer(y), pointer(index), x.numel()),
            *(float(scale), int(zero_point), spec.quant_min, spec.quant_max),
            *(pointer(between), pointer(after), *map(pointer, records)),
        )
        if in_place:
            ctx.mark_dirty(x)
        if index is not None:
            ctx.save_for_backward(index, derivative)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        """Return the gradient of ``x``."""
        index, derivative = ctx.saved_tensors
        gradient = with_layout_of(gradients[0], index)
        result = torch.empty_like(gradient)
        _KERNELS.call(
            "dq_table_backward",
            *(pointer(gradient), pointer(index), pointer(result), gradient.numel()),
            *(pointer(derivative), len(derivative)),
        )
        return (result, *[None] * 6)
