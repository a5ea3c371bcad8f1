"""The kernels: fake quantization of whole tensors in one pass over memory.

On a CPU they are those of native.cpp, on a GPU those of `dq.quant.kernels.gpu`. If `takes` returns
False (other dtypes, no compiler, no Triton, torch.compile on a GPU), callers compute the same
results with torch's operators; see `dq.native`.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from pathlib import Path

import torch
from torch import Tensor

from dq.native import SWITCH, Kernels, has_memory, is_dense

SOURCE = Path(__file__).with_name("native.cpp")
_DTYPES = (torch.float32, torch.int32)

_P, _I, _N, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float

_KERNELS = Kernels(
    SOURCE,
    {
        "dq_activation": [_P, _P, _P, _N, _F, _F, _P, _P, _I, _I, _P, _P, _I],
        "dq_masked": [_P, _P, _P, _N, _I],
        "dq_learned_backward": [_P, _P, _P, _N, _F, _F, _P, _P, _I, _I, _I, _P, _P, _I],
        "dq_weight": [_P, _P, _P, _P, _N, _N, *[_I] * 7, _P, _I],
        "dq_weight_backward": [*[_P] * 5, _N, _N, *[_I] * 7, _P, _P, _P, _I],
    },
)
library, call = _KERNELS.library, _KERNELS.call


def takes(*tensors: Tensor | None) -> bool:
    """Say whether kernels are available and support these tensors in the present context."""
    given = [x for x in tensors if x is not None]
    kinds = {x.device.type for x in given}
    if kinds not in ({"cpu"}, {"cuda"}) or any(x.dtype not in _DTYPES for x in given):
        return False
    if torch.compiler.is_compiling():
        # On a GPU the compiler itself fuses torch's operators.
        return kinds == {"cpu"} and bool(is_there())
    if not has_memory(*given) or not all(map(is_dense, given)):
        return False
    return library() is not None if kinds == {"cpu"} else has_gpu_kernels(given[0].device)


@functools.cache
def has_gpu_kernels(device: torch.device) -> bool:
    """Say whether Triton is installed and enabled, and its kernels pass `kernels_work`.

    The answer is found once per GPU and process.
    """
    if os.environ.get(SWITCH) == "0" or importlib.util.find_spec("triton") is None:
        return False
    from dq.quant.kernels.gpu.check import kernels_work

    return kernels_work(device)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_there() -> bool:
    """Say whether the kernels are available; called while torch.compile traces."""
    return library() is not None
