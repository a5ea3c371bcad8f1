"""The kernels of native.cpp: quantization of whole tensors in one pass over memory, on a CPU.

Where `takes` says no (a GPU, other dtypes, no compiler) callers compose the same results from
torch's operators; see `dq.native`.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from dq.native import Kernels, has_memory, is_dense

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
    """Say whether kernels are to be had and can work on these tensors, in the present context."""
    given = [x for x in tensors if x is not None]
    if any(x.device.type != "cpu" or x.dtype not in _DTYPES for x in given):
        return False
    if torch.compiler.is_compiling():
        return bool(is_there())
    return has_memory(*given) and all(map(is_dense, given)) and library() is not None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_there() -> bool:
    """Say whether the kernels can be had; asked while torch.compile traces."""
    return library() is not None
