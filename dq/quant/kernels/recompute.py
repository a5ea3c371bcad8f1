"""Rounded tensors that the backward pass computes again instead of keeping.

A convolution keeps its input and its weight until its gradient is computed. Rounded ones are
another copy of what is kept anyway, the parameter or, where scales are learned, the values before
rounding; one pass over memory makes them anew.

That holds as long as nobody writes into a tensor. torch counts the writes (``_version``), so a
rounded tensor that was changed afterwards is kept as it is, as without this file, and a tensor that
is changed when the backward pass has to read it is an error, as it is everywhere in torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ATTRIBUTE = "_dq_again"


def version_of(tensor: Tensor) -> int:
    """Return how often the tensor's memory was written to; 0 where torch does not count."""
    return 0 if tensor.is_inference() else tensor._version


class Again:
    """How to compute a tensor once more; all that need it share the result.

    It lives as long as an operator keeps it for its backward pass, and the result with it.

    Args:
        compute: Returns the tensor, equal bit for bit and laid out as before.
        sources: What it is computed from, none of which may change before.
        version: Of the tensor that it stands for, as it is computed again.
    """

    def __init__(
        self, compute: Callable[[], Tensor], sources: Sequence[Tensor] = (), version: int = 0
    ) -> None:
        self._compute = compute
        self._sources = [(source, version_of(source)) for source in sources]
        self._found: Tensor | None = None
        self.version = version

    def tensor(self) -> Tensor:
        """Return the tensor, computed at the first call.

        Raises:
            RuntimeError: What it is computed from has been changed in place.
        """
        if self._found is None:
            for source, version in self._sources:
                _check(source, version)
            with torch.no_grad():
                self._found = self._compute()
        return self._found


def offer(tensor: Tensor, compute: Callable[[], Tensor], sources: Sequence[Tensor] = ()) -> None:
    """Say how a tensor can be computed again by an operator that would keep it.

    Args:
        tensor: Fresh.
        compute: As for `Again`; must not refer to ``tensor``, or nothing is saved.
        sources: As for `Again`.
    """
    setattr(tensor, _ATTRIBUTE, Again(compute, sources, version_of(tensor)))


def keeping_no(*tensors: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which operators keep none of these tensors that can be computed again.

    Args:
        tensors: Inputs of the operators, alive until the context ends.
    """
    # By address and size, since what autograd hands over is another object, or a transposed view.
    found = {
        (t.data_ptr(), t.numel()): again
        for t in tensors
        if (again := getattr(t, _ATTRIBUTE, None)) is not None and again.version == version_of(t)
    }
    if not found:
        return contextlib.nullcontext()

    def pack(kept: Tensor) -> Any:
        again = found.get((kept.data_ptr(), kept.numel()))
        if again is None or again.version != version_of(kept):
            return _Kept(tensor=kept, version=version_of(kept))
        return again, kept.size(), kept.stride()

    return torch.autograd.graph.saved_tensors_hooks(pack, _unpack)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A tensor that is kept; torch looks at versions itself only where there are no hooks."""

    tensor: Tensor
    version: int


def _unpack(packed: Any) -> Tensor:
    if isinstance(packed, _Kept):
        _check(packed.tensor, packed.version)
        return packed.tensor
    again, size, stride = packed
    found: Tensor = again.tensor().as_strided(size, stride)
    return found


def _check(tensor: Tensor, version: int) -> None:
    now = version_of(tensor)
    if now != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace"
            f" operation: a tensor of shape {tuple(tensor.shape)} is at version {now}, version"
            f" {version} was expected; write the operation so that it returns a new tensor"
        )
