"""The globals a checkpoint may use in addition to torch's list: numpy scalars and arrays."""

import functools
from collections.abc import Callable
from typing import Any

import torch

_DTYPES = (
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128),
)


@functools.cache
def numpy_globals() -> tuple[Any, ...]:
    """List the globals that pickles of numpy scalars and arrays use (numbers, booleans and text).

    They hold only data. Files of model zoos contain them, for example as a best score or a random
    state, under the module names of numpy 1 or 2. They work with either version of numpy.

    Returns:
        The argument for `torch.serialization.safe_globals`.
    """
    array: Any = torch.zeros(1).numpy()
    rebuild_array: Callable[..., Any] = array.__reduce__()[0]
    rebuild_scalar: Callable[..., Any] = array[0].__reduce__()[0]
    dtypes = [torch.zeros(0, dtype=dtype).numpy().dtype for dtype in _DTYPES]
    dtypes += [array.astype(text).dtype for text in (str, bytes)]
    named: list[Any] = [type(array), type(array.dtype).__mro__[-2]]
    named += dict.fromkeys(type(dtype) for dtype in dtypes)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        named.append((rebuild_array, f"{module}._reconstruct"))
        named.append((rebuild_scalar, f"{module}.scalar"))
    return tuple(named)
