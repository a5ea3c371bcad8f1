"""Fake-quantized tensors that are recomputed in the backward pass instead of saved.

A convolution saves its input and its weight for the backward pass. If these are fake-quantized,
the tensor they were computed from is in memory anyway: the parameter, or, with learned scales, the
unquantized values. One pass over memory computes them again.

This is correct only if these tensors are not written. torch counts writes (``_version``). A
fake-quantized tensor that was changed before it is used is saved as usual. If a source was changed
before the backward pass needs it, that is an error, as elsewhere in torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakTensorKeyDictionary

# Smaller weights are kept: their bytes are few, and computing them again costs launches on a GPU.
LEAST_VALUES = 2**14


def version_of(tensor: Tensor) -> int:
    """Return the number of writes to the tensor's memory; 0 if torch does not count them."""
    return 0 if tensor.is_inference() else tensor._version


class Recomputation:
    """How to recompute a tensor; all operators that need it share the result.

    It lives as long as an operator holds it for its backward pass, and so does the result.

    Args:
        compute: Returns the tensor, equal bit for bit and with the same memory layout.
        sources: Its inputs, which must not change in the meantime.
        version: Version of the tensor that it stands for, checked when it is recomputed.
    """

    def __init__(
        self, compute: Callable[[], Tensor], sources: Sequence[Tensor] = (), version: int = 0
    ) -> None:
        self._compute = compute
        self._sources = [(source, version_of(source)) for source in sources]
        self._found: Tensor | None = None
        self.version = version

    def tensor(self) -> Tensor:
        """Return the tensor; the first call computes it.

        Raises:
            RuntimeError: A source was changed in place.
        """
        if self._found is None:
            for source, version in self._sources:
                _check(source, version)
            with torch.no_grad():
                self._found = self._compute()
        return self._found


# The operator that uses a fake-quantized tensor gets nothing but the tensor, from whatever code of
# the model is in between. The dictionary keeps no tensor alive; an entry ends with its tensor.
_recomputations: MutableMapping[Tensor, Recomputation] = WeakTensorKeyDictionary()


def make_recomputable(
    tensor: Tensor, compute: Callable[[], Tensor], sources: Sequence[Tensor] = ()
) -> None:
    """Register how a tensor can be recomputed by an operator that would save it.

    Args:
        tensor: Just computed.
        compute: As for `Recomputation`. It must not refer to ``tensor``, or no memory is saved.
        sources: As for `Recomputation`.
    """
    _recomputations[tensor] = Recomputation(compute, sources, version_of(tensor))


def same_values(tensor: Tensor, wrapped: Tensor) -> None:
    """Register that ``wrapped`` has the values of ``tensor`` and is recomputed in the same way."""
    recomputation = _recomputations.get(tensor)
    if recomputation is not None and recomputation.version == version_of(tensor):
        recomputation.version = version_of(wrapped)
        _recomputations[wrapped] = recomputation


def computed_twice(compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return ``compute(*inputs)``, and keep only the inputs for the backward pass.

    For weights that torch's operators fold and round. The operators would keep about ten bytes per
    value: the folded weight, the rounded weight and masks. Here the backward pass computes these
    again.

    Args:
        compute: A function of torch's operators; parameters that it uses get gradients too.
        inputs: The weight first. They must not change before the backward pass. A weight that was
            computed, by folding for example, is left to the function that computed it.
    """
    weight = inputs[0]
    if (
        weight.numel() < LEAST_VALUES
        or not (torch.is_grad_enabled() and weight.requires_grad and weight.is_leaf)
        or torch.compiler.is_compiling()
    ):
        return compute(*inputs)
    result: Tensor = checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=False)
    sources = [tensor.detach() for tensor in inputs]
    make_recomputable(result, lambda: compute(*sources), sources)
    return result


def recomputing(*tensors: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which operators do not save those of these tensors that are recomputable.

    Args:
        tensors: Inputs of the operators, alive until the context ends.
    """
    # Found by address and size: autograd passes another object, or a transposed view.
    found = {
        (t.data_ptr(), t.numel()): recomputation
        for t in tensors
        if (recomputation := _recomputations.get(t)) is not None
        and recomputation.version == version_of(t)
    }
    if not found:
        return contextlib.nullcontext()

    def pack(kept: Tensor) -> Any:
        recomputation = found.get((kept.data_ptr(), kept.numel()))
        if recomputation is None or recomputation.version != version_of(kept):
            return _SavedTensor(tensor=kept, version=version_of(kept))
        return recomputation, kept.size(), kept.stride()

    return torch.autograd.graph.saved_tensors_hooks(pack, _unpack)


@dataclass(frozen=True, slots=True, kw_only=True)
class _SavedTensor:
    """A saved tensor. With hooks installed, torch does not check versions, so we do."""

    tensor: Tensor
    version: int


def _unpack(packed: Any) -> Tensor:
    if isinstance(packed, _SavedTensor):
        _check(packed.tensor, packed.version)
        return packed.tensor
    recomputation, size, stride = packed
    found: Tensor = recomputation.tensor().as_strided(size, stride)
    return found


def _check(tensor: Tensor, version: int) -> None:
    now = version_of(tensor)
    if now != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace"
            f" operation: a tensor of shape {tuple(tensor.shape)} is at version {now}, version"
            f" {version} was expected; write the operation so that it returns a new tensor"
        )
