"""The functions of `dq.quant.kernels.gpu.ops`, computed by the kernels for a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dq.quant.kernels import operators
from dq.quant.kernels.together import row_table, views_of

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


def rounded_weights(
    weights: list[Tensor], table: Tensor, numbers: Any, integers: list[int], unfolds: bool
) -> Tensor:
    flat = weights[0].new_empty(sum(weight.numel() for weight in weights))
    assert torch.equal(table, row_table(weights)), "a table of other weights"
    rows = _by_weight(weights, numbers)
    for view, weight, own in zip(views_of(flat, weights), weights, rows, strict=True):
        view.copy_(operators.rounded_weight(weight, *own, _per_channel(integers), unfolds))
    return flat


def weights_gradients(
    gradient: Tensor, weights: list[Tensor], table: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    numbers, integers, unfolds, wanted = rest
    found = [
        weight_gradients(one, weight, *own, _per_channel(integers), unfolds, wanted)
        for one, weight, own in zip(
            views_of(gradient, weights), weights, _by_weight(weights, numbers), strict=True
        )
    ]
    flat = torch.empty_like(gradient)
    for view, parts in zip(views_of(flat, weights), found, strict=True):
        view.copy_(parts[0])
    return flat, torch.cat([parts[1] for parts in found]), torch.cat([p[2] for p in found])


def _by_weight(weights: list[Tensor], numbers: Sequence[Tensor | None]) -> list[tuple[Any, ...]]:
    sizes = [len(weight) for weight in weights]
    parts = [[None] * len(sizes) if t is None else t.split(sizes) for t in numbers]
    return list(zip(*parts, strict=True))


def _per_channel(integers: list[int]) -> list[int]:
    return [*integers[:5], 1]
