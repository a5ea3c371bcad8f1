"""Search the range for which quantization of a weight has the least squared error."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dq.quant.numerics.affine import fake_quantize, range_over, scale_and_zero_point, sum_over
from dq.quant.numerics.spec import QuantSpec


@torch.no_grad()
def best_shrunk_range(
    weight: Tensor, spec: QuantSpec, shares: Iterable[float], *, required_gain: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the range with the least squared quantization error, per channel or per tensor.

    Both ends are shrunk by the same share. A narrower range quantizes the many small weights more
    finely and clips the few large ones.

    Args:
        weight: Any shape.
        spec: The integer format.
        shares: Factors for both ends of the full range, in the order in which they are tried.
        required_gain: Share of the least error so far by which a new error must be smaller. With 0,
            the first of equally good ranges wins.

    Returns:
        Two tensors of shape ``()`` or ``(weight.shape[channel_axis],)``; minimum and maximum of the
        weight if no share has an error that is a number.
    """
    low, high = best_low, best_high = range_over(weight, spec.channel_axis)
    values = weight if weight.dtype == torch.float64 else weight.float()
    least = torch.full_like(low, torch.inf, dtype=values.dtype)
    for share in shares:
        scale, zero_point = scale_and_zero_point(low * share, high * share, spec)
        rounded = fake_quantize(values, scale, zero_point, spec)
        error = sum_over((rounded - values).square(), spec.channel_axis)
        better = error < least * (1 - required_gain)
        least = torch.where(better, error, least)
        best_low = torch.where(better, low * share, best_low)
        best_high = torch.where(better, high * share, best_high)
    return best_low, best_high
