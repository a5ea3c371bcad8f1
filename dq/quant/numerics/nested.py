"""Tensors in nested results of models."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def floating_tensors(value: Any) -> list[Tensor]:
    """Return the floating-point tensors in nested lists, tuples and dicts, in order."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in floating_tensors(item)]
    return []
