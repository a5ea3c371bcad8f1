"""Fake quantization in half precision: in float32 if the dtype cannot represent the result.

A fake-quantized value is an integer times a scale. bfloat16 keeps 8 significant bits of it and
float16 keeps 11, so nearly every value would move off the quantization grid: at 8 bits in bfloat16
by up to half a step, at 16 bits in float16 by many steps. Quantizers therefore compute in float32
and return float32. Operators that read such values run in float32 under autocast, if autocast's
dtype would move them by more than an eighth of a step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from dq.quant.numerics.spec import QuantSpec

# Bits of the significand, including the leading one.
SIGNIFICANDS = {torch.float16: 11, torch.bfloat16: 8}


def largest_integer(spec: QuantSpec) -> int:
    """Return the largest distance of an integer of this format from the zero point."""
    if spec.symmetric:
        return max(-spec.quant_min, spec.quant_max)
    return spec.quant_max - spec.quant_min


def represents(dtype: torch.dtype, spec: QuantSpec) -> bool:
    """Return whether this dtype represents every quantized value exactly, with any scale.

    That needs a power-of-two scale, integers that fit the significand, and the exponent range of
    float32.
    """
    if dtype not in SIGNIFICANDS:
        return True
    fits = largest_integer(spec) <= 1 << SIGNIFICANDS[dtype]
    return fits and spec.power_of_two and dtype is torch.bfloat16


def nearly_represents(dtype: torch.dtype, spec: QuantSpec) -> bool:
    """Say whether this dtype moves no quantized value by more than an eighth of a step."""
    return dtype not in SIGNIFICANDS or largest_integer(spec) <= 1 << (SIGNIFICANDS[dtype] - 3)


def in_representable_dtype(x: Tensor, spec: QuantSpec) -> Tensor:
    """Return ``x``, in float32 if its dtype cannot represent the quantized values."""
    return x if represents(x.dtype, spec) else x.float()


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return autocast's dtype on the device of ``x``; None without autocast."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context without autocast on the device of ``x``."""
    if autocast_dtype(x) is None:
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


@functools.cache
def on_the_grid(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that autocast leaves in float32 if all its tensors are float32.

    Quantizers return float32 when they fake-quantize, so such tensors stay on their grids.

    Args:
        function: One that autocast runs in a narrow dtype, such as ``torch.matmul``.
    """

    def computed(*args: Any, **kwargs: Any) -> Any:
        given = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        if not given or any(t.dtype is not torch.float32 for t in given):
            return function(*args, **kwargs)
        with without_autocast(given[0]):
            return function(*args, **kwargs)

    # Only the name: with torch's module name too, torch.fx would take it for torch's function.
    computed.__name__ = function.__name__
    return computed
