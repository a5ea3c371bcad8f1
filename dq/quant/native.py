"""The kernels of native.cpp: compiled once a machine, loaded once a process, called on tensors.

A composition of torch's operators passes over memory several times where one pass is enough, and
on a CPU memory is what fake quantization costs. Without a compiler nothing is lost but speed: the
callers then compose the same results from torch's operators, as they do on a GPU, for other dtypes
and under torch.compile, which fuses them itself.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._C import _functorch as functorch

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native.cpp")
# Contraction would make a * b + c another number than torch's operators give.
FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
LIMIT_S = 120.0
SWITCH = "DQ_NATIVE"
_DTYPES = (torch.float32, torch.int32)


def takes(*tensors: Tensor | None) -> bool:
    """Say whether kernels are to be had and can work on these tensors, in the present context."""
    given = [x for x in tensors if x is not None]
    if any(x.device.type != "cpu" or x.dtype not in _DTYPES for x in given):
        return False
    if torch.compiler.is_compiling():
        return bool(is_there())
    if torch._C._len_torch_dispatch_stack() > 0 or functorch.maybe_current_level() is not None:
        return False  # Tensors here stand for others and have no memory of their own.
    if not all(type(x) in (Tensor, nn.Parameter) and is_dense(x) for x in given):
        return False
    return library() is not None


def is_dense(x: Tensor) -> bool:
    """Say whether the tensor fills its memory, so that a kernel may take it as one row."""
    return x.is_contiguous() or (
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    )


def dense(x: Tensor) -> Tensor:
    """Return the tensor, copied where it does not fill its memory."""
    return x if is_dense(x) else x.contiguous()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_there() -> bool:
    """Say whether the kernels can be had; asked while torch.compile traces."""
    return library() is not None


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the kernels, compiled where they are not yet; None where that cannot be done."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        path = _built()
        found = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        reason = " ".join(str(getattr(error, "stderr", None) or error).split())[:300]
        log.warning("no native kernels, training quantized is slower on a CPU: %s", reason)
        return None
    return _declared(found)


def _built() -> Path:
    """Return the shared library for this source, these flags and this processor."""
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode() + _processor().encode())
    path = _folder() / f"native-{key.hexdigest()[:16]}.so"
    if path.exists():
        return path
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler.split()[0]) is None:
        raise FileNotFoundError(f"{compiler} is not on PATH")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        unlinked, linked = Path(folder, "native.o"), Path(folder, "native.so")
        # Linked without OpenMP's runtime, so that the one torch has loaded serves both: a second
        # one would compete with its threads.
        for words in (
            [*compiler.split(), *FLAGS, "-c", str(SOURCE), "-o", str(unlinked)],
            [*compiler.split(), "-shared", str(unlinked), "-o", str(linked)],
        ):
            subprocess.run(words, check=True, capture_output=True, text=True, timeout=LIMIT_S)
        # Several ranks may build at once; each puts a whole file in place.
        os.replace(linked, path)
    return path


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "dq-launcher" / "kernels"


def _processor() -> str:
    """Describe what the compiler optimizes for; a home may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    kept = {"model name", "flags", "Features", "CPU part"}
    return "\n".join(sorted({line for line in lines if line.partition("\t")[0].strip() in kept}))


_P, _I, _N, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    """Give the functions their argument types, without which pointers would be cut to 32 bits."""
    signatures = {
        "dq_activation": [_P, _P, _P, _N, _F, _F, _P, _P, _I, _I, _P, _P, _I],
        "dq_masked": [_P, _P, _P, _N, _I],
        "dq_learned_backward": [_P, _P, _P, _N, _F, _F, _P, _P, _I, _I, _I, _P, _P, _I],
        "dq_weight": [_P, _P, _P, _P, _N, _N, *[_I] * 7, _P, _I],
        "dq_weight_backward": [*[_P] * 5, _N, _N, *[_I] * 7, _P, _P, _P, _I],
    }
    for name, types in signatures.items():
        function = getattr(found, name)
        function.argtypes, function.restype = types, None
    return found


def pointer(x: Tensor | None) -> int | None:
    """Return the address of a tensor's data for a kernel; None stays None."""
    return None if x is None else x.data_ptr()


def call(name: str, *arguments: float | int | None) -> None:
    """Call a kernel with as many threads as torch uses.

    Args:
        name: Of the function in native.cpp.
        arguments: Its arguments but for the last, the number of threads; `pointer` makes those
            for tensors.
    """
    found = library()
    assert found is not None, "takes() was not asked"
    getattr(found, name)(*arguments, torch.get_num_threads())
