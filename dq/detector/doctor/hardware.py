"""Checks of GPUs, collectives, compilers and our own kernels."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from pathlib import Path

from dq.detector.doctor.finding import Finding, failure, good, warning

LIMIT_S = 20.0


def gpu() -> Finding:
    """Compute something on every GPU."""
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") and _said("nvidia-smi", "-L"):
            return warning(
                f"there is a GPU, but torch {torch.__version__} cannot use it",
                "install a torch for the driver's CUDA; docs/gpu.md",
            )
        return good("none; everything runs on the CPU")
    names = []
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        total = float(torch.ones(1024, device=device).sum())
        if total != 1024.0:
            return failure(f"GPU {number} adds up 1024 ones to {total}", "use another GPU")
        of_it = torch.cuda.get_device_properties(number)
        names.append(f"{of_it.name} with {of_it.total_memory / 2**30:.0f} GiB")
    return good(f"{', '.join(names)}, CUDA {torch.version.cuda}")


def collectives() -> Finding:
    """Add up a tensor in a process group of one rank, with NCCL if there is a GPU."""
    import torch
    from torch import distributed

    if not distributed.is_available():
        return failure("this torch has none", "install a torch with torch.distributed")
    on_gpu = torch.cuda.is_available() and distributed.is_nccl_available()
    backend = "nccl" if on_gpu else "gloo"
    store = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        value = torch.ones(4, device="cuda" if on_gpu else "cpu")
        distributed.all_reduce(value)
        total = float(value.sum())
    finally:
        distributed.destroy_process_group()
    if total != 4.0:
        return failure(f"{backend} adds up 4 ones to {total}", "docs/nodes.md")
    if on_gpu:
        numbers = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
        return good(f"NCCL {'.'.join(map(str, numbers))}")
    if torch.cuda.is_available():
        return warning("gloo alone: this torch has no NCCL", "install torch's CUDA build for Linux")
    return good("gloo; NCCL needs a GPU")


def compilers() -> Finding:
    """Check that there is a C++ compiler."""
    usual = {"CC": "gcc", "CXX": "g++"}
    names = [(os.environ.get(name, "").split() or [own])[0] for name, own in usual.items()]
    found = {name: _said(name, "--version") for name in names}
    missing = [name for name, text in found.items() if not text]
    if missing:
        return warning(
            f"no {' and no '.join(missing)}",
            "apt-get install gcc g++; without it training on a CPU is slower",
        )
    return good(", ".join(f"{name} {text.split()[-1]}" for name, text in found.items()))


def kernels() -> Finding:
    """Compile and load every C++ file of ours."""
    from dq import native

    if os.environ.get(native.SWITCH) == "0":
        return warning(f"switched off by {native.SWITCH}=0", f"unset {native.SWITCH}")
    reasons: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: reasons.append(record.getMessage())  # type: ignore[method-assign]
    native.log.addHandler(handler)
    sources = sorted(Path(native.__file__).parent.rglob("*.cpp"))
    loaded = [path for path in sources if native.Kernels(path, {}).library() is not None]
    if len(loaded) < len(sources):
        said = f"{len(loaded)} of {len(sources)} can be built: {reasons[0] if reasons else ''}"
        return warning(said, "install g++, or give CXX=COMPILER; only speed is lost")
    return good(f"{len(sources)} C++ files compiled and loaded")


def _said(*words: str) -> str:
    """Return the first line that a program prints; empty if it is missing or fails."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=LIMIT_S, check=True, errors="replace"
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout.splitlines() or [""])[0].strip()
