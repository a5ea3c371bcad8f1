"""Restore names that numpy has removed since mmdet 2.28 and mmcv 1.7 were released.

mmdet still uses ``np.int`` (`CustomDataset.get_cat_ids`, OpenImages, `IoUBalancedNegSampler`), mmcv
for ``np.float`` (`pixel_group`), and so do data sets and pipelines that users wrote for them. All
other names that the two use from other libraries exist in torch 2.14, numpy 2.4, OpenCV 5 and
Pillow 13, except those for devices that need a special torch (MLU, NPU, parrots). Functions whose
behaviour numpy has changed are left as they are.
"""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

import numpy as np
import torch

from dq.dist.files.safe_globals import numpy_globals

log = logging.getLogger(__name__)

# Removed in numpy 1.24: Python's own types; in 2.0: aliases; in 2.4: old functions.
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


def restore_names(module: ModuleType, names: dict[str, Any]) -> tuple[str, ...]:
    """Add the missing ones of these names to the module; return them."""
    # A module's own __getattr__ may warn about a removed name before it raises.
    missing = tuple(name for name in names if name not in vars(module))
    for name in missing:
        setattr(module, name, names[name])
    return missing


def restore() -> tuple[str, ...]:
    """Restore numpy's removed names for mmdet and mmcv, and let torch load numpy's scalars.

    By default torch.load accepts only plain data, but mmdet's checkpoints also contain numpy
    scalars. mmcv loads initial weights with this default.

    Returns:
        The names that were missing; empty at a second call.
    """
    torch.serialization.add_safe_globals(list(numpy_globals()))
    return restore_names(np, NUMPY)


RESTORED = restore()


def say() -> None:
    """Log the restored names."""
    if RESTORED:
        first = ", ".join(f"np.{name}" for name in RESTORED[:2])
        log.info(
            "numpy %s has no %s (removed in all: %d): restored for mmdet and mmcv",
            np.__version__,
            first,
            len(RESTORED),
        )
