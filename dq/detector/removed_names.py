"""Names that numpy has taken away since mmdet 2.28 and mmcv 1.7 were written, given back.

mmdet still asks for ``np.int`` (`CustomDataset.get_cat_ids`, OpenImages, `IoUBalancedNegSampler`),
mmcv for ``np.float`` (`pixel_group`), and so do data sets and pipelines that users wrote for them.
Every other name of another library that the two ask for is there in torch 2.14, numpy 2.4,
OpenCV 5 and Pillow 13, but for those of devices that need a torch of their own (MLU, NPU, parrots).
What numpy merely does otherwise today stays as numpy does it.
"""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

import numpy as np
import torch

from dq.dist.files.safe_globals import numpy_globals

log = logging.getLogger(__name__)

# As numpy had them: until 1.24 Python's own types, until 2.0 second names, until 2.4 old functions.
NUMPY: dict[str, Any] = {
    "int": int,
    "float": float,
    "complex": complex,
    "object": object,
    "str": str,
    "bool": bool,
    "unicode": str,
    "bool8": np.bool_,
    "int0": np.intp,
    "uint0": np.uintp,
    "float_": np.float64,
    "complex_": np.complex128,
    "cfloat": np.complex128,
    "singlecomplex": np.complex64,
    "longfloat": np.longdouble,
    "longcomplex": np.clongdouble,
    "string_": np.bytes_,
    "unicode_": np.str_,
    "Inf": np.inf,
    "Infinity": np.inf,
    "infty": np.inf,
    "PINF": np.inf,
    "NINF": -np.inf,
    "PZERO": 0.0,
    "NZERO": -0.0,
    "NaN": np.nan,
    "alltrue": np.all,
    "sometrue": np.any,
    "product": np.prod,
    "cumproduct": np.cumprod,
    "round_": np.round,
    "row_stack": np.vstack,
    "in1d": lambda ar1, ar2, **options: np.isin(np.ravel(ar1), ar2, **options),
    "trapz": np.trapezoid,
    "mat": np.asmatrix,
    "asfarray": lambda a, dtype=np.float64: np.asarray(a, dtype=dtype),
    "asscalar": lambda a: a.item(),
    "AxisError": np.exceptions.AxisError,
    "ComplexWarning": np.exceptions.ComplexWarning,
    "VisibleDeprecationWarning": np.exceptions.VisibleDeprecationWarning,
}


def give_back(module: ModuleType, names: dict[str, Any]) -> tuple[str, ...]:
    """Have every one of these names in the module; return those that it had not."""
    # A module's own __getattr__ may warn of a name before it says that it is gone.
    missing = tuple(name for name in names if name not in vars(module))
    for name in missing:
        setattr(module, name, names[name])
    return missing


def mend() -> tuple[str, ...]:
    """Give mmdet and mmcv back what they ask numpy for, and let torch read numpy's scalars.

    torch.load builds plain data alone unless told otherwise, and mmdet's checkpoints hold numpy's
    scalars beside the weights; mmcv, which loads initial weights, does not tell it.

    Returns:
        The names that were missing; none where nothing was, or at a second call.
    """
    torch.serialization.add_safe_globals(list(numpy_globals()))
    return give_back(np, NUMPY)


MENDED = mend()


def say() -> None:
    """Log what was given back."""
    if MENDED:
        log.info(
            "numpy %s has no %s: given back for mmdet and mmcv",
            np.__version__,
            ", ".join(f"np.{name}" for name in MENDED),
        )
