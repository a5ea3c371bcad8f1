"""Fold and fake-quantize many weights in a few launches, with gradients.

On a GPU the step of a small network takes as long as its kernel launches. Folding and rounding the
weight of one layer takes about ten launches. A whole group of layers together takes no more. The
results equal those of single layers bit for bit, except that sums in the gradients of factors and
scales have another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dq.quant.kernels import operators
from dq.quant.kernels.recompute import make_recomputable
from dq.quant.numerics.affine import SMALLEST_SCALE


@dataclass(frozen=True, slots=True)
class Kind:
    """What layers of one group have in common.

    Attributes:
        integers: The integer format, as the kernels take it.
        learns: True if scales are learned parameters that are trained, False if they are learned
            but frozen, None if scales are computed from the weights.
        folds: A norm is folded.
        unfolds: The folded weight is divided by the factor again: the norm normalises by the batch.
        has_bias: The layer has a bias, which is folded if the norm uses its running statistics.
        trains: Some parameter needs a gradient.
        eps: The ``eps`` of the norm.
    """

    integers: tuple[int, ...]
    learns: bool | None
    folds: bool
    unfolds: bool
    has_bias: bool
    trains: bool
    eps: float

    @property
    def folds_bias(self) -> bool:
        """Whether biases are folded too."""
        return self.folds and not self.unfolds


@dataclass(frozen=True, slots=True)
class Member:
    """The tensors of one layer.

    Attributes:
        weight: ``(output channels, ...)``, dense.
        learned: The learned scale, ``()`` or ``(output channels,)``.
        zero_point: Of the learned scale.
        scale_factor: Multiplies the gradient of the learned scale.
        norm: Weight, bias, running mean and variance of the norm.
        bias: The bias of the layer.
    """

    weight: Tensor
    learned: Tensor | None = None
    zero_point: Tensor | None = None
    scale_factor: float = 1.0
    norm: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
    bias: Tensor | None = None


def row_table(weights: Sequence[Tensor]) -> Tensor:
    """Return the table of `dq.quant.kernels.gpu.ops.rounded_weights`, ``(rows, 3)``, on the CPU."""
    parts, place = [], 0
    for weight in weights:
        rows, columns = len(weight), weight.numel() // len(weight)
        row = torch.arange(rows)
        begin = weight.data_ptr() + row * (columns * weight.element_size())
        parts.append(torch.stack([begin, place + row * columns, torch.full_like(row, columns)], 1))
        place += weight.numel()
    return torch.cat(parts)


def views_of(flat: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the parts of a flat tensor in the shapes and memory layouts of the weights."""
    found, place = [], 0
    for weight in weights:
        found.append(flat.as_strided(weight.shape, weight.stride(), place))
        place += weight.numel()
    return found


def round_together(
    kind: Kind, members: Sequence[Member], table: Tensor
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Return the fake-quantized weights and the folded biases of a group.

    Args:
        kind: Of all members.
        members: At least one; their tensors lie on one GPU.
        table: Result of `row_table` for their weights, on that GPU.

    Returns:
        One weight for each member; and one bias each, or no biases if none are folded.
    """
    with torch.no_grad():
        rows = _rows(kind, members)
    given: list[Tensor | None] = []
    for member in members:
        gamma, beta = (None, None) if member.norm is None else member.norm[:2]
        given += [member.weight, gamma, member.learned, *_biases(kind, member, beta)]
    found = _Together.apply(kind, members, table, rows, *given)
    rounded, biases = found[: len(members)], found[len(members) :]
    if torch.is_grad_enabled() and kind.trains:
        weights = [member.weight.detach() for member in members]
        again = _Again(kind, weights, table, rows)
        for number, tensor in enumerate(rounded):
            make_recomputable(tensor, again.part(number), [weights[number]])
    return rounded, biases


def _biases(kind: Kind, member: Member, beta: Tensor | None) -> tuple[Tensor | None, ...]:
    return (member.bias, beta) if kind.folds_bias else (None, None)


class _Again:
    """Computes the weights of a group again, once for all layers that need them."""

    def __init__(self, kind: Kind, weights: Sequence[Tensor], table: Tensor, rows: _Rows) -> None:
        self.kind, self.weights, self.table, self.rows = kind, weights, table, rows
        self.found: list[Tensor] | None = None

    def part(self, number: int) -> Callable[[], Tensor]:
        """Return a function that computes one of the weights."""

        def compute() -> Tensor:
            if self.found is None:
                self.found = _rounded(self.kind, self.weights, self.table, self.rows)
            return self.found[number]

        return compute


@dataclass(frozen=True, slots=True)
class _Rows:
    """Values of a group for each output channel of its layers, each ``(rows,)`` or None."""

    factor: Tensor | None
    inverse: Tensor | None
    scale: Tensor | None
    zero_point: Tensor | None


def _rows(kind: Kind, members: Sequence[Member]) -> _Rows:
    factor = inverse = scale = zero_point = None
    if kind.folds:
        norms = [member.norm for member in members if member.norm is not None]
        inverse = torch.rsqrt(torch.cat([norm[3] for norm in norms]) + kind.eps)
        factor = torch.cat([norm[0] for norm in norms]) * inverse
    if kind.learns is not None:
        scale = _spread([m.learned for m in members], members).abs().clamp(min=SMALLEST_SCALE)
        zero_point = _spread([m.zero_point for m in members], members)
    return _Rows(factor, inverse, scale, zero_point)


def _spread(values: Sequence[Tensor | None], members: Sequence[Member]) -> Tensor:
    pairs = zip(values, members, strict=True)
    return torch.cat([v.expand(len(m.weight)) for v, m in pairs if v is not None])


def _rounded(kind: Kind, weights: Sequence[Tensor], table: Tensor, rows: _Rows) -> list[Tensor]:
    flat = operators.rounded_weights(
        list(weights),
        table,
        (rows.factor, rows.scale, rows.zero_point),
        list(kind.integers),
        kind.unfolds,
    )
    return views_of(flat, weights)


class _Together(torch.autograd.Function):
    """For each layer it takes weight, norm's weight, learned scale, bias and norm's bias."""

    @staticmethod
    def forward(
        ctx: Any,
        kind: Kind,
        members: Sequence[Member],
        table: Tensor,
        rows: _Rows,
        *given: Tensor | None,
    ) -> tuple[Tensor, ...]:
        weights = [member.weight for member in members]
        rounded = _rounded(kind, weights, table, rows)
        biases, shift = _folded_biases(kind, members, rows)
        ctx.set_materialize_grads(False)
        learned = [member.learned for member in members if member.learned is not None]
        own = (table, rows.factor, rows.inverse, rows.scale, rows.zero_point, shift)
        ctx.save_for_backward(*own, *weights, *learned)
        ctx.kind = kind
        ctx.scale_factors = [member.scale_factor for member in members]
        return (*rounded, *biases)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        kind, number = ctx.kind, len(ctx.scale_factors)
        table, factor, inverse, scale, zero_point, shift, *rest = ctx.saved_tensors
        weights, learned = rest[:number], rest[number:]
        wanted = [kind.folds and any(ctx.needs_input_grad[5::5]), kind.learns is True]
        d_weights, d_factor, d_scale = operators.weights_gradients(
            _gathered(gradients[:number], weights),
            weights,
            table,
            (factor, scale, zero_point),
            list(kind.integers),
            kind.unfolds,
            wanted,
        )
        sizes = [len(weight) for weight in weights]
        nothing: list[Tensor | None] = [None] * number
        by_weight: list[Tensor | None] = list(views_of(d_weights, weights))
        by_gamma, by_scale, by_bias, by_beta = nothing, nothing, nothing, nothing
        if kind.folds_bias:
            d_beta = _flat(gradients[number:], sizes, weights[0])
            by_beta = list(torch.split(d_beta, sizes))
            if kind.has_bias:
                by_bias = list(torch.split((d_beta * factor), sizes))
            if wanted[0]:
                d_factor = d_factor + d_beta * shift
        if wanted[0]:
            by_gamma = list(torch.split((d_factor * inverse), sizes))
        if kind.learns is not None:
            by_scale = _gradients_of_scales(kind, learned, d_scale, sizes, ctx.scale_factors)
        found: list[Tensor | None] = []
        groups = zip(by_weight, by_gamma, by_scale, by_bias, by_beta, strict=True)
        for n, group in enumerate(groups):
            reached = any(gradient is not None for gradient in gradients[n::number])
            found += group if reached else [None] * 5
        needed = ctx.needs_input_grad[4:]
        kept = [g if need else None for g, need in zip(found, needed, strict=True)]
        return (None, None, None, None, *kept)


def _folded_biases(
    kind: Kind, members: Sequence[Member], rows: _Rows
) -> tuple[Sequence[Tensor], Tensor | None]:
    """Return the folded biases, and bias minus running mean for each row."""
    norms = [member.norm for member in members if member.norm is not None]
    if not kind.folds_bias:
        return (), None
    mean = torch.cat([norm[2] for norm in norms])
    own = [member.bias for member in members if member.bias is not None]
    shift = torch.cat(own) - mean if kind.has_bias else -mean
    assert rows.factor is not None
    folded = shift * rows.factor + torch.cat([norm[1] for norm in norms])
    return torch.split(folded, [len(member.weight) for member in members]), shift


def _gathered(gradients: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Tensor:
    """Return the gradients one after another, each in its weight's layout; missing ones are 0."""
    flat = weights[0].new_empty(sum(weight.numel() for weight in weights))
    views = views_of(flat, weights)
    there = [(v, g) for v, g in zip(views, gradients, strict=True) if g is not None]
    if len(there) < len(views):
        flat.zero_()
    if there:
        torch._foreach_copy_([v for v, _ in there], [g for _, g in there])
    return flat


def _flat(gradients: Sequence[Tensor | None], sizes: Sequence[int], like: Tensor) -> Tensor:
    return torch.cat(
        [like.new_zeros(s) if g is None else g for g, s in zip(gradients, sizes, strict=True)]
    )


def _gradients_of_scales(
    kind: Kind,
    learned: Sequence[Tensor],
    d_scale: Tensor,
    sizes: Sequence[int],
    factors: Sequence[float],
) -> list[Tensor | None]:
    if not kind.learns:  # DistributedDataParallel waits for a gradient of every parameter.
        flat = learned[0].new_zeros(sum(raw.numel() for raw in learned))
        return list(views_of(flat, learned))
    raw_rows = torch.cat([raw.expand(size) for raw, size in zip(learned, sizes, strict=True)])
    # The scale is the absolute value of the parameter, with a lower bound.
    d_scale = d_scale * raw_rows.sign() * (raw_rows.abs() >= SMALLEST_SCALE)
    sums = [
        part.sum() if raw.dim() == 0 else part
        for part, raw in zip(torch.split(d_scale, list(sizes)), learned, strict=True)
    ]
    return list(torch._foreach_mul(sums, list(factors)))
