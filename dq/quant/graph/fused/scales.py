"""Compute the learned scales of all activations on a GPU together, before the first layer.

Each scale is the absolute value of a parameter, bounded below. Computed alone, a scale takes seven
kernel launches, with its gradient. On a CPU and under torch.compile each quantizer computes its own
scale.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.function import once_differentiable

from dq.quant.kernels import native
from dq.quant.numerics.affine import SMALLEST_SCALE
from dq.quant.quantizers.learned_step import LsqActivationQuantizer
from dq.quant.quantizers.phase import Phase


def compute_scales_first_(graph: fx.Graph, calls: Sequence[tuple[fx.Node, str]]) -> None:
    """Insert one call that computes all scales, and give each quantizer's call its own.

    Args:
        graph: A copy that only runs.
        calls: Calls that take a scale as one more argument, with the name of their quantizer.
    """
    if len(calls) < 2:
        return
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(first):
        quantizers = tuple(graph.get_attr(name) for _, name in calls)
        scales = graph.call_function(learned_scales, quantizers)
    for number, (call, _) in enumerate(calls):
        with graph.inserting_before(call):
            call.args = (*call.args, graph.call_function(operator.getitem, (scales, number)))


def learned_scales(*quantizers: LsqActivationQuantizer) -> Sequence[Tensor | None]:
    """Return the scale of each quantizer, ``()``; None where it computes its own."""
    found: list[Tensor | None] = [None] * len(quantizers)
    if torch.compiler.is_compiling() or not quantizers[0].learned_scale.is_cuda:
        return found
    joined = [number for number, quantizer in enumerate(quantizers) if _joins(quantizer)]
    if joined:
        scales = _Scales.apply(*(quantizers[number].learned_scale for number in joined))
        for number, scale in zip(joined, scales, strict=True):
            found[number] = scale
    return found


def _joins(quantizer: LsqActivationQuantizer) -> bool:
    """Return whether the scale is learned now, and not rounded to a power of two."""
    learns = quantizer.phase is Phase.TRAIN and not quantizer.spec.power_of_two
    return learns and native.takes(quantizer.learned_scale)


class _Scales(torch.autograd.Function):
    """The scales of `dq.quant.quantizers.learned_step.positive` for many parameters."""

    @staticmethod
    def forward(ctx: Any, *learned: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        raw = torch.stack(learned)
        sizes = raw.abs()
        # The gradient of the absolute value, where the lower bound lets it pass.
        ctx.save_for_backward(raw.sign() * (sizes >= SMALLEST_SCALE))
        return tuple(sizes.clamp(min=SMALLEST_SCALE).unbind())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        (signs,) = ctx.saved_tensors
        nothing = torch.zeros_like(signs[0])
        given = torch.stack([nothing if g is None else g for g in gradients])
        found = (given * signs).unbind()
        # Without a gradient an optimizer leaves a parameter as it is.
        return tuple(f if g is not None else None for f, g in zip(found, gradients, strict=True))
