"""Distributed quantization of detectors: numerics, ranks, the bridge between them, the adapter."""

from __future__ import annotations


def __getattr__(name: str) -> str:
    if name == "__version__":
        from dq.version import version

        return version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
