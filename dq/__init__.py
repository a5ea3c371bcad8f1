"""Distributed quantization of detectors: quantization, ranks, their bridge, the mmdet adapter."""

from __future__ import annotations


def __getattr__(name: str) -> str:
    if name == "__version__":
        from dq.version import version

        return version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
