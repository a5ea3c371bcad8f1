"""Rounding under autocast and in half precision: in float32 where the dtype cannot hold the grid.

A rounded value is an integer times a scale. bfloat16 keeps 8 bits of it and float16 11, so nearly
every such product would move off the grid when it is kept so: at 8 bits in bfloat16 by up to half a
step, at 16 bits in float16 by many. Quantizers therefore round in float32 and return float32, and
what computes with rounded values does so in float32 where autocast would take a dtype that moves
them by more than an eighth of a step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from dq.quant.numerics.spec import QuantSpec

# Bits of the significand, the leading one included.
SIGNIFICANDS = {torch.float16: 11, torch.bfloat16: 8}


def largest_integer(spec: QuantSpec) -> int:
    """Return the largest distance of the spec's integers from their zero point."""
    if spec.symmetric:
        return max(-spec.quant_min, spec.quant_max)
    return spec.quant_max - spec.quant_min


def holds(dtype: torch.dtype, spec: QuantSpec) -> bool:
    """Say whether every representable value is a number of this dtype, whatever its scale.

    Powers of two times integers that fit the significand are, where the exponent is float32's.
    """
    if dtype not in SIGNIFICANDS:
        return True
    fits = largest_integer(spec) <= 1 << SIGNIFICANDS[dtype]
    return fits and spec.power_of_two and dtype is torch.bfloat16


def nearly_holds(dtype: torch.dtype, spec: QuantSpec) -> bool:
    """Say whether no representable value moves by more than an eighth of a step in this dtype."""
    return dtype not in SIGNIFICANDS or largest_integer(spec) <= 1 << (SIGNIFICANDS[dtype] - 3)


def widened(x: Tensor, spec: QuantSpec) -> Tensor:
    """Return ``x``, as float32 where its dtype cannot hold what it is rounded to."""
    return x if holds(x.dtype, spec) else x.float()


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return what autocast computes with where ``x`` is; None where there is none."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which ``x``'s device computes in the dtypes that it is given."""
    if autocast_dtype(x) is None:
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


@functools.cache
def on_the_grid(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that autocast leaves in float32 where all its tensors are float32.

    Quantizers return float32 when they round, so such tensors lie on their grids.

    Args:
        function: One that autocast computes in a narrow dtype, such as ``torch.matmul``.
    """

    def computed(*args: Any, **kwargs: Any) -> Any:
        given = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        if not given or any(t.dtype is not torch.float32 for t in given):
            return function(*args, **kwargs)
        with without_autocast(given[0]):
            return function(*args, **kwargs)

    # The name alone: torch.fx would take what has torch's module for torch's function.
    computed.__name__ = function.__name__
    return computed
