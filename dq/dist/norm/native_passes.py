"""The four passes of a batch normalization over ranks with the kernels of batch_norm.cpp.

They replace those of `dq.dist.norm.torch_passes`, with the same arguments, if `takes` returns True:
float32 on a CPU, contiguous or channels-last. A composition of torch's operators passes over a
tensor about fifteen times in a step; the kernels read six tensors of its size and write two.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from dq.native import Kernels, has_memory, pointer

_P, _N, _D, _I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_int

_KERNELS = Kernels(
    Path(__file__).with_name("batch_norm.cpp"),
    {
        "dq_norm_moments": [_P, _N, _N, _N, _P, _I],
        "dq_norm_normalize": [*[_P, _P, _N, _N, _N, _P, _N, _P, _P, _D], _P, _P, _P, _I],
        "dq_norm_sums": [_P, _P, _N, _N, _N, _P, _P, _I],
        "dq_norm_gradient": [*[_P, _P, _P, _N, _N, _N], *[_P] * 5, _I],
    },
)
library = _KERNELS.library


def takes(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Return whether the kernels are available and support these tensors."""
    given = [x for x in (input, weight, bias) if x is not None]
    return (
        all(x.device.type == "cpu" and x.dtype == torch.float32 for x in given)
        and all(x.is_contiguous() for x in given[1:])
        and (input.is_contiguous() or _is_channels_last(input))
        and has_memory(*given)
        and library() is not None
    )


def own_moments(input: Tensor) -> Tensor:
    """See `dq.dist.norm.torch_passes.own_moments`."""
    own = torch.empty(2 * input.shape[1] + 1, dtype=torch.float64)
    _KERNELS.call("dq_norm_moments", pointer(input), *_shape(input), pointer(own))
    return own


def normalize(
    input: Tensor, gathered: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `dq.dist.norm.torch_passes.normalize`."""
    output = torch.empty_like(input)
    mean, variance = gathered.new_empty(input.shape[1]), gathered.new_empty(input.shape[1])
    count = gathered.new_empty(1)
    _KERNELS.call(
        "dq_norm_normalize",
        *(pointer(input), pointer(output), *_shape(input), pointer(gathered), len(gathered)),
        *(pointer(weight), pointer(bias), eps, pointer(mean), pointer(variance), pointer(count)),
    )
    return output, mean, variance, count


def own_sums(gradient: Tensor, input: Tensor, mean: Tensor) -> Tensor:
    """See `dq.dist.norm.torch_passes.own_sums`; the gradient has the input's memory layout."""
    sums = mean.new_empty(2, input.shape[1])
    _KERNELS.call(
        "dq_norm_sums",
        *(pointer(gradient), pointer(input), *_shape(input), pointer(mean), pointer(sums)),
    )
    return sums


def input_gradient(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    inverse_deviation: Tensor,
    count: Tensor,
    sums: Tensor,
) -> Tensor:
    """See `dq.dist.norm.torch_passes.input_gradient`; the gradient has the input's layout."""
    result = torch.empty_like(input)
    _KERNELS.call(
        "dq_norm_gradient",
        *(pointer(gradient), pointer(input), pointer(result), *_shape(input), pointer(weight)),
        *(pointer(mean), pointer(inverse_deviation), pointer(sums), pointer(count)),
    )
    return result


def _shape(input: Tensor) -> tuple[int, int, int]:
    """Return rows per channel, channels, and values per row, in memory order."""
    channels, size = input.shape[1], input.numel()
    if size == 0:
        return 0, channels, 1
    if input.is_contiguous():
        return input.shape[0], channels, size // (input.shape[0] * channels)
    return size // channels, channels, 1


def _is_channels_last(input: Tensor) -> bool:
    if input.dim() == 4:
        return input.is_contiguous(memory_format=torch.channels_last)
    return input.dim() == 5 and input.is_contiguous(memory_format=torch.channels_last_3d)
