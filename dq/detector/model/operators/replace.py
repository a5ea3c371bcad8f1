"""Replace an autograd function of mmcv by a composition if it has no compiled operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

Composed = Callable[..., Tensor]
Takes = Callable[[torch.device], bool]


def replace_(function: type[Function], composed: Composed, takes: Takes) -> None:
    """Make ``function.apply`` call ``composed`` on devices for which ``takes`` returns True.

    The two methods of the class are replaced, not its name, because modules of mmcv and mmdet
    import ``apply`` under other names.

    Args:
        function: An autograd function of mmcv with one tensor as result.
        composed: Has the same arguments; autograd computes its gradients.
        takes: Gets the device of the first tensor; returns whether to use ``composed``.
    """
    compiled_forward, compiled_backward = function.forward, function.backward

    def forward(ctx: Any, *args: Any) -> Tensor:
        device = next(arg.device for arg in args if isinstance(arg, Tensor))
        # An exporter can only trace a composition.
        ctx.is_composed = takes(device) or torch.compiler.is_exporting()
        if not ctx.is_composed:
            computed: Tensor = compiled_forward(ctx, *args)
            return computed
        if not any(ctx.needs_input_grad):
            plain: Tensor = composed(*args)
            return plain
        # A separate autograd graph, used by the backward pass below.
        ctx.inputs = [
            arg.detach().requires_grad_(needed) if isinstance(arg, Tensor) else arg
            for arg, needed in zip(args, ctx.needs_input_grad, strict=True)
        ]
        with torch.enable_grad():
            ctx.output = composed(*ctx.inputs)
        detached: Tensor = ctx.output.detach()
        return detached

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.is_composed:
            given: tuple[Tensor | None, ...] = compiled_backward(ctx, gradient)
            return given
        needed = ctx.needs_input_grad
        if not ctx.output.requires_grad:
            return (None,) * len(needed)
        wanted = [arg for arg, is_needed in zip(ctx.inputs, needed, strict=True) if is_needed]
        with torch.enable_grad():
            found = iter(
                torch.autograd.grad(
                    ctx.output, wanted, gradient, retain_graph=True, allow_unused=True
                )
            )
        return tuple(next(found) if is_needed else None for is_needed in needed)

    function.forward = staticmethod(forward)  # type: ignore[method-assign]
    function.backward = staticmethod(backward)  # type: ignore[method-assign]
