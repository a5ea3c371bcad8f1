"""C++ kernels: compiled once per machine, loaded once per process, called on tensors' memory.

A composition of torch's operators passes over memory several times where one pass is enough, and on
a CPU memory traffic dominates the small operations between convolutions. Without a compiler, or
with `DQ_NATIVE=0`, only speed is lost: callers then compute the same results with torch's
operators, as they do for tensors that a kernel does not support. This module has what all kernels
share; what a kernel computes is described at its source.
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch as functorch

from dq.whole_file import drafts

log = logging.getLogger(__name__)

# Contraction (fused multiply-add) would give a * b + c other bits than torch's operators.
FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
LIMIT_S = 120.0
SWITCH = "DQ_NATIVE"


class Kernels:
    """The functions of one C++ file; it is compiled when they are first used.

    Args:
        source: The file. Its functions are ``extern "C"``, return nothing and take the number of
            threads as their last argument.
        signatures: The ctypes of each function's arguments, by function name. Without them
            pointers would be truncated to 32 bits.
    """

    def __init__(self, source: Path, signatures: Mapping[str, Sequence[Any]]) -> None:
        self.source = source
        self.signatures = signatures

    def library(self) -> ctypes.CDLL | None:
        """Return the kernels, compiled if necessary; None if that is impossible."""
        return self._library

    def call(self, name: str, *arguments: float | int | None) -> None:
        """Call a kernel with the number of threads that torch uses.

        Args:
            name: Name of the function in the source.
            arguments: Its arguments without the last one, the number of threads; use `pointer` for
                tensors.
        """
        assert self._library is not None, "callers check `library` first: there may be no kernels"
        getattr(self._library, name)(*arguments, torch.get_num_threads())

    @functools.cached_property
    def _library(self) -> ctypes.CDLL | None:
        if os.environ.get(SWITCH) == "0":
            return None
        try:
            found = ctypes.CDLL(str(_built(self.source)))
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            reason = " ".join(str(getattr(error, "stderr", None) or error).split())[:300]
            log.warning(
                "no native kernels of %s, training is slower on a CPU: %s", self.source.name, reason
            )
            return None
        for name, types in self.signatures.items():
            function = getattr(found, name)
            function.argtypes, function.restype = types, None
        return found


def has_memory(*tensors: Tensor) -> bool:
    """Return whether the tensors are plain ones with memory that a kernel may read here."""
    if torch._C._len_torch_dispatch_stack() > 0 or functorch.maybe_current_level() is not None:
        return False  # Fake or functional tensors have no memory of their own.
    return all(type(x) in (Tensor, nn.Parameter) for x in tensors)


def is_dense(x: Tensor) -> bool:
    """Return whether the tensor fills its memory, so that a kernel may treat it as one row."""
    return x.is_contiguous() or (
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    )


def dense(x: Tensor) -> Tensor:
    """Return the tensor, copied if it does not fill its memory."""
    return x if is_dense(x) else x.contiguous()


def with_layout_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the tensor in the memory layout of another, copied if its layout differs.

    Args:
        tensor: Such as a gradient, in the layout that the next layer's backward pass gave it.
        like: A tensor of the same shape.
    """
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def with_promised_strides(result: Tensor, input: Tensor) -> Tensor:
    """Return the result of an operator with the strides that the operator promised the compiler.

    Args:
        result: Of the shape of ``input``, any dtype.
        input: The tensor for which the operator's fake implementation calls ``torch.empty_like``.
    """
    promised = torch.empty_like(input, dtype=result.dtype)
    return result if promised.stride() == result.stride() else promised.copy_(result)


def pointer(x: Tensor | None) -> int | None:
    """Return the address of a tensor's data for a kernel; None for None."""
    return None if x is None else x.data_ptr()


def _built(source: Path) -> Path:
    """Return the shared library for this source, these flags and this processor."""
    key = hashlib.sha256(source.read_bytes() + " ".join(FLAGS).encode() + _processor().encode())
    path = _folder() / f"{source.stem}-{key.hexdigest()[:16]}.so"
    if path.exists():
        return path
    compiler = os.environ.get("CXX", "").split() or ["g++"]
    if shutil.which(compiler[0]) is None:
        raise FileNotFoundError(f"{compiler[0]} is not on PATH")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several ranks may build at once; each of them writes a whole file.
    with tempfile.TemporaryDirectory() as folder, drafts(path) as (linked,):
        unlinked = Path(folder, "unlinked.o")
        # Linked without an OpenMP runtime, so that kernels use the one torch has loaded. A second
        # runtime would compete for the same cores.
        for words in (
            [*compiler, *FLAGS, "-c", str(source), "-o", str(unlinked)],
            [*compiler, "-shared", str(unlinked), "-o", str(linked)],
        ):
            subprocess.run(words, check=True, capture_output=True, text=True, timeout=LIMIT_S)
    return path


def _folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "dq-launcher" / "kernels"


def _processor() -> str:
    """Describe the processor that the compiler optimizes for; machines may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    kept = {"model name", "flags", "Features", "CPU part"}
    return "\n".join(sorted({line for line in lines if line.partition("\t")[0].strip() in kept}))
