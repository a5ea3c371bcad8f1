"""The kernels of histogram.cpp: count values in logarithmic bins, compute the errors of ranges."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from dq.native import Kernels, has_memory, is_dense, pointer

_P, _I, _N = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_KERNELS = Kernels(
    Path(__file__).with_name("histogram.cpp"),
    {
        "dq_count": [_P, _N, _P, _N, _N, _I, _I, _I, _P, _P, _P, _I],
        "dq_range_errors": [_P, _P, _P, _N, _P, _N, _P, _I],
    },
)
library = _KERNELS.library


def takes(x: Tensor) -> bool:
    """Say whether there are kernels for tensors like this one here."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and has_memory(x)
        and is_dense(x)
        and library() is not None
    )


def count_(
    x: Tensor,
    bins: tuple[int, int, int],
    counts: Tensor,
    record: tuple[Tensor, Tensor],
    weights: Tensor | None = None,
) -> None:
    """Count the values in their bins and record the extremes of the finite ones.

    Args:
        x: Any shape, float32, dense; with ``weights`` ``(N, channels, ...)``, contiguous.
        bins: First exponent and mantissa bits with a bin, number of mantissa bits below the bin's,
            and number of bins of one sign.
        counts: int64, one for each bin and one for values that are not finite; added to.
        record: The smallest and the largest value so far, float32 ``()``; updated.
        weights: How often a value of each channel counts, int64 ``(channels,)``; None for once.
    """
    rows = (0, 1) if weights is None else (len(weights), x[0, 0].numel() if x.numel() else 1)
    _KERNELS.call(
        "dq_count",
        *(pointer(x), x.numel(), pointer(weights), *rows, *bins),
        *map(pointer, (counts, *record)),
    )


def range_errors(begin: Tensor, end: Tensor, counts: Tensor, ranges: Tensor) -> Tensor:
    """Return the squared error of each candidate range, summed over all values, ``(candidates,)``.

    Args:
        begin: Left edges of the bins, float64, ascending, contiguous like all arguments.
        end: Right edges.
        counts: Number of values in each bin.
        ranges: ``(5, candidates)``: scale, its cube, smallest and largest representable value, and
            the width below which a bin counts as one value.
    """
    errors = torch.empty(ranges.shape[1], dtype=torch.float64)
    _KERNELS.call(
        "dq_range_errors",
        *map(pointer, (begin, end, counts)),
        len(counts),
        *(pointer(ranges), ranges.shape[1], pointer(errors)),
    )
    return errors
