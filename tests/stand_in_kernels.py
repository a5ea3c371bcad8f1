"""The functions of `dq.quant.kernels.gpu.ops`, computed by the kernels for a CPU."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dq.quant.kernels import operators

activate = operators.activate
rounded_weight = operators.rounded_weight
masked_gradient = operators.masked_gradient


def learned_gradients(
    gradient: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    integers_and_clip: tuple[Any, ...],
    has_offset: bool,
) -> tuple[Tensor, Tensor]:
    d_x, d_scale, d_offset = operators.learned_gradients(
        gradient, x, scale, zero_point, *integers_and_clip, has_offset, 1.0
    )
    return d_x, d_scale.new_tensor([d_scale.item(), d_offset.item()])


def weight_gradients(
    gradient: Tensor,
    weight: Tensor,
    factor: Tensor | None,
    scale: Tensor | None,
    zero_point: Tensor | None,
    integers: list[int],
    unfolds: bool,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    # The factor one: `dq.quant.kernels.operators` multiplies by its own.
    return operators.weight_gradients(
        gradient, weight, factor, scale, zero_point, integers, unfolds, 1.0, wanted
    )
