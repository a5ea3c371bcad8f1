"""Rounded tensors that the backward pass computes again instead of keeping.

A convolution keeps its input and its weight until its gradient is computed. Rounded ones are
another copy of what is kept anyway, the parameter or, where scales are learned, the values before
rounding; one pass over memory makes them anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_ATTRIBUTE = "_dq_again"


class Again:
    """How to compute a tensor once more; all that need it share the result.

    It lives as long as an operator keeps it for its backward pass, and the result with it.

    Args:
        compute: Returns the tensor, equal bit for bit and laid out as before.
    """

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self._compute = compute
        self._found: Tensor | None = None

    def tensor(self) -> Tensor:
        """Return the tensor, computed at the first call."""
        if self._found is None:
            with torch.no_grad():
                self._found = self._compute()
        return self._found


def offer(tensor: Tensor, compute: Callable[[], Tensor]) -> None:
    """Say how a tensor can be computed again by an operator that would keep it.

    Args:
        tensor: Fresh; its values must not be changed afterwards, nor those it is computed from.
        compute: As for `Again`; must not refer to ``tensor``, or nothing is saved.
    """
    setattr(tensor, _ATTRIBUTE, Again(compute))


def keeping_no(*tensors: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which operators keep none of these tensors that can be computed again.

    Args:
        tensors: Inputs of the operators, alive until the context ends.
    """
    # By address and size, since what autograd hands over is another object, or a transposed view.
    found = {
        (t.data_ptr(), t.numel()): again
        for t in tensors
        if (again := getattr(t, _ATTRIBUTE, None)) is not None
    }
    if not found:
        return contextlib.nullcontext()

    def pack(kept: Tensor) -> Any:
        again = found.get((kept.data_ptr(), kept.numel()))
        return kept if again is None else (again, kept.size(), kept.stride())

    return torch.autograd.graph.saved_tensors_hooks(pack, _unpack)


def _unpack(packed: Any) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    again, size, stride = packed
    found: Tensor = again.tensor().as_strided(size, stride)
    return found
