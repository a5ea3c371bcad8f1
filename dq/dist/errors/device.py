"""Readable messages for what torch reports when a device fails or its memory is full."""

from __future__ import annotations

import re
import socket

_FULL = re.compile(r"out of memory|can.t allocate memory|alloc_failed|bad_alloc", re.IGNORECASE)
# The texts of the driver, cuDNN, cuBLAS and NCCL; "CUDA error: ..." is torch's own beginning.
_FAILED = re.compile(
    r"CUDA error|cuda(?:Error|runtime)|cudnn|cublas_status|CUDA driver|ncclUnhandledCuda"
    r"|uncorrectable ECC|device-side assert|HIP error",
    re.IGNORECASE,
)
_WRONG_INDEX = re.compile(r"device-side assert", re.IGNORECASE)


def explain_device(error: BaseException) -> str | None:
    """Return a sentence for an error of a device or of memory, None for others.

    Args:
        error: Raised by torch or by Python.
    """
    if not isinstance(error, RuntimeError | MemoryError):
        return None
    # Compared by name, so that errors can be explained without importing torch.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = str(error)
    first = " ".join(text.partition("\n")[0].split()).removeprefix("CUDA error: ")
    host = socket.gethostname()
    if "OutOfMemoryError" in kinds or (_FAILED.search(text) and _FULL.search(text)):
        return (
            f"the memory of a GPU on {host} is full ({first}); lower data.samples_per_gpu or the"
            " size of the images, set fp16=dict(loss_scale='dynamic'), or end other programs on it"
            " (nvidia-smi lists them)"
        )
    if isinstance(error, MemoryError) or _FULL.search(text):
        return (
            f"the memory of {host} is full ({first or type(error).__name__}); lower"
            " data.samples_per_gpu or data.workers_per_gpu, start fewer ranks on a node, or ask"
            " Slurm for more (--mem)"
        )
    if _WRONG_INDEX.search(text):
        return (
            f"a computation on a GPU of {host} got an index outside of its tensor ({first}); often"
            " a class that num_classes does not have: --device cpu names the place"
        )
    if "AcceleratorError" in kinds or _FAILED.search(text):
        return (
            f"a GPU of {host} failed ({first}); look at nvidia-smi and the kernel's log (dmesg),"
            " leave that node out (Slurm: --exclude), and continue with --resume"
        )
    return None
