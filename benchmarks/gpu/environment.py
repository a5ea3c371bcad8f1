"""Describe the machine: GPU, driver, CUDA, torch, and the target of mmcv's compiled operators."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess

import torch

PACKAGES = ("torch", "torchvision", "triton", "numpy", "mmcv-full", "mmdet", "torchao")


def describe() -> dict[str, str]:
    """Return names and versions; a dash if one is missing."""
    found = {"python": platform.python_version(), "cpus": str(os.cpu_count())}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "-"
    found["gpu"] = "-"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        found["driver"] = _first_line(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        )
    found["torch's CUDA"] = torch.version.cuda or "-"
    found["nvcc"] = _first_line(["nvcc", "--version"], containing="release")
    found["mmcv's CUDA"] = _mmcv_cuda()
    return found


def _first_line(command: list[str], containing: str = "") -> str:
    if shutil.which(command[0]) is None:
        return "-"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line.strip() for line in done.stdout.splitlines() if containing in line]
    return lines[0] if lines else "-"


def _mmcv_cuda() -> str:
    try:
        from mmcv.ops import get_compiling_cuda_version
    except ImportError as error:
        return f"mmcv cannot be imported: {error}"
    return str(get_compiling_cuda_version())
