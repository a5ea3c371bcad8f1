"""Checks of Python and its packages. Each check imports the package that it is about."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys

from dq.counted import counted
from dq.detector.doctor.finding import Finding, failure, good, warning
from dq.version import NAME, version

INSTALL = "make setup in a checkout sets up an environment, docs/gpu.md says how with a GPU"
_OLDEST_PYTHON, _FIRST_UNTRIED = (3, 11, 4), (3, 14)


def python() -> Finding:
    """Check the interpreter."""
    said = f"{platform.python_version()} in {sys.executable}"
    if not sys.version_info[:3] >= _OLDEST_PYTHON:
        return failure(said, "use Python 3.11.4 to 3.13")
    if sys.version_info[:2] >= _FIRST_UNTRIED:
        return warning(said, "nobody has tried it; use Python 3.11.4 to 3.13")
    return good(said)


def launcher() -> Finding:
    """Check that every package that this one needs is installed in a version that fits."""
    try:
        wanted = importlib.metadata.requires(NAME) or []
    except importlib.metadata.PackageNotFoundError:
        return warning(f"{version()}, not installed", "pip install -e . in the checkout")
    wrong = [text for need in wanted if (text := _unmet(need))]
    if wrong:
        return failure(f"{version()}, but {', '.join(wrong)}", "pip install the packages named")
    number = sum("extra ==" not in need for need in wanted)
    return good(f"{version()} with {counted(number, 'package[s]')}")


def _unmet(need: str) -> str | None:
    """Return what is wrong about a requirement, such as ``numpy>=2.0``; None if nothing is."""
    if "extra ==" in need:
        return None
    name = re.split(r"[<>=!~;\[ ]", need, maxsplit=1)[0]
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is missing"
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return None
    given = Requirement(need)
    return None if given.specifier.contains(found, prereleases=True) else f"{name} is {found}"


def torch() -> Finding:
    """Check that torch loads and computes."""
    import torch as module

    total = float((module.ones(64, 64) @ module.ones(64, 64)).sum())
    if total != 64.0**3:
        return failure(f"{module.__version__} computes {total}, not {64.0**3}", INSTALL)
    return good(f"{module.__version__}, {counted(module.get_num_threads(), 'thread[s]')}")


def mmcv() -> Finding:
    """Check that mmcv is there, in the generation that mmdet 2.x needs."""
    import mmcv as module

    number = module.__version__
    if not number.startswith("1."):
        return failure(number, f"mmdet 2.x needs mmcv-full 1.7.2; {INSTALL}")
    return good(number)


def operators() -> Finding:
    """Call two of mmcv's compiled operators, on the GPU too if there is one."""
    import torch as module
    from mmcv.ops import get_compiling_cuda_version, nms, roi_align

    from dq.detector.model.operators.ensure import ensure_operators

    ensure_operators()
    devices = ["cpu", *(["cuda"] if module.cuda.is_available() else [])]
    for device in devices:
        boxes = module.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 30, 30]], device=device)
        _, kept = nms(boxes, module.tensor([0.9, 0.8, 0.7], device=device), 0.5)
        if kept.tolist() != [0, 2]:
            return failure(f"nms keeps {kept.tolist()} on {device}, not [0, 2]", INSTALL)
        image = module.full((1, 1, 8, 8), 3.0, device=device)
        roi = module.tensor([[0.0, 1, 1, 5, 5]], device=device)
        pooled = roi_align(image, roi, (2, 2))
        if not module.allclose(pooled, module.full_like(pooled, 3.0)):
            return failure(f"roi_align is wrong on {device}: {pooled.flatten().tolist()}", INSTALL)
    compiled = get_compiling_cuda_version()
    with_cuda = "without CUDA" if compiled == "not available" else f"with CUDA {compiled}"
    return good(f"nms and roi_align compute on {' and '.join(devices)}, compiled {with_cuda}")


def mmdet() -> Finding:
    """Check that mmdet loads with its operators."""
    import mmdet as module
    import mmdet.models

    number = module.__version__
    if not number.startswith("2."):
        return failure(number, f"use mmdet 2.28.2; {INSTALL}")
    return good(f"{number}, {counted(len(mmdet.models.DETECTORS.module_dict), 'detector[s]')}")
