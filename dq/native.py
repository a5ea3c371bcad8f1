"""Kernels in C++: compiled once a machine, loaded once a process, called on tensors' memory.

A composition of torch's operators passes over memory several times where one pass is enough, and
on a CPU memory is what the small work between convolutions costs. Without a compiler, or with
`DQ_NATIVE=0`, nothing is lost but speed: callers then compose the same results from torch's
operators, as they do on a GPU and for other dtypes. Here is what all kernels share; what they
compute stands beside their sources.
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

# Contraction would make a * b + c another number than torch's operators give.
FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
LIMIT_S = 120.0
SWITCH = "DQ_NATIVE"


class Kernels:
    """The functions of one C++ file; nothing is compiled before they are asked for.

    Args:
        source: The file; its functions are ``extern "C"``, return nothing and take the number of
            threads as their last argument.
        signatures: The ctypes of each function's arguments by its name, without which pointers
            would be cut to 32 bits.
    """

    def __init__(self, source: Path, signatures: Mapping[str, Sequence[Any]]) -> None:
        self.source = source
        self.signatures = signatures

    def library(self) -> ctypes.CDLL | None:
        """Return the kernels, compiled where they are not yet; None where that cannot be done."""
        return self._library

    def call(self, name: str, *arguments: float | int | None) -> None:
        """Call a kernel with as many threads as torch uses.

        Args:
            name: Of the function in the source.
            arguments: Its arguments but for the last, the number of threads; `pointer` makes
                those for tensors.
        """
        assert self._library is not None, "nobody asked whether there are kernels"
        getattr(self._library, name)(*arguments, torch.get_num_threads())

    @functools.cached_property
    def _library(self) -> ctypes.CDLL | None:
        if os.environ.get(SWITCH) == "0":
            return None
        try:
            found = ctypes.CDLL(str(_built(self.source)))
        except (OSError, subprocess.SubprocessError) as error:
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
    """Say whether the tensors are plain ones whose data a kernel may read, in this context."""
    if torch._C._len_torch_dispatch_stack() > 0 or functorch.maybe_current_level() is not None:
        return False  # Tensors here stand for others and have no memory of their own.
    return all(type(x) in (Tensor, nn.Parameter) for x in tensors)


def is_dense(x: Tensor) -> bool:
    """Say whether the tensor fills its memory, so that a kernel may take it as one row."""
    return x.is_contiguous() or (
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    )


def dense(x: Tensor) -> Tensor:
    """Return the tensor, copied where it does not fill its memory."""
    return x if is_dense(x) else x.contiguous()


def laid_out_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the tensor in the layout of another, copied where it has a different one.

    Args:
        tensor: Such as a gradient, in whatever layout the layer behind has made it.
        like: Of the same shape.
    """
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def as_promised(result: Tensor, input: Tensor) -> Tensor:
    """Return the result of an operator with the strides that it promises the compiler.

    Args:
        result: Of the shape of ``input``, any dtype.
        input: What the operator's fake calls ``torch.empty_like`` on.
    """
    promised = torch.empty_like(input, dtype=result.dtype)
    return result if promised.stride() == result.stride() else promised.copy_(result)


def pointer(x: Tensor | None) -> int | None:
    """Return the address of a tensor's data for a kernel; None stays None."""
    return None if x is None else x.data_ptr()


def _built(source: Path) -> Path:
    """Return the shared library for this source, these flags and this processor."""
    key = hashlib.sha256(source.read_bytes() + " ".join(FLAGS).encode() + _processor().encode())
    path = _folder() / f"{source.stem}-{key.hexdigest()[:16]}.so"
    if path.exists():
        return path
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler.split()[0]) is None:
        raise FileNotFoundError(f"{compiler} is not on PATH")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several ranks may build at once; each puts a whole file in place.
    with tempfile.TemporaryDirectory() as folder, drafts(path) as (linked,):
        unlinked = Path(folder, "unlinked.o")
        # Linked without OpenMP's runtime, so that the one torch has loaded serves both: a second
        # one would compete with its threads.
        for words in (
            [*compiler.split(), *FLAGS, "-c", str(source), "-o", str(unlinked)],
            [*compiler.split(), "-shared", str(unlinked), "-o", str(linked)],
        ):
            subprocess.run(words, check=True, capture_output=True, text=True, timeout=LIMIT_S)
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
