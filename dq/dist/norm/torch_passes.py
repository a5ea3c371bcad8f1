"""The four passes of a batch normalization over ranks, composed of torch operators.

The exchange between ranks happens between the passes; see `dq.dist.norm.operator`. All of them
accept (N, C, *) of any floating dtype and device, and N may be 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import batch_norm

from dq.native import with_promised_strides


def own_moments(input: Tensor) -> Tensor:
    """Return the moments of this rank's samples, to be gathered.

    Returns:
        Means (C), sums of squared deviations from them (C) and the number of samples per channel
        (1), concatenated; float64.
    """
    channels = input.shape[1]
    count = input.numel() // channels
    own = torch.zeros(2 * channels + 1, dtype=torch.float64, device=input.device)
    if count > 0:
        dims = _all_but_channels(input)
        mean = input.to(_wide(input)).mean(dims)
        squares = (input - _as(mean, input)).square_().sum(dims)
        own[:channels], own[channels:-1], own[-1] = mean, squares, count
    return own


def normalize(
    input: Tensor, gathered: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge the moments of all ranks, normalize by them, scale and shift.

    Args:
        input: (N, C, *).
        gathered: (ranks, 2 * C + 1), from `own_moments`.
        weight: (C,) or None.
        bias: (C,) or None.
        eps: Added to the variance.

    Returns:
        The result, in the input's memory layout; mean (C,), biased variance (C,) and number of
        samples per channel (1,) over all ranks, float64.
    """
    channels, wide = input.shape[1], _wide(input)
    means, squares, counts = torch.split(gathered, [channels, channels, 1], dim=1)
    total = counts.sum().clamp(min=1)
    mean = (means * counts).sum(0) / total
    variance = (squares + counts * (means - mean).square()).sum(0) / total
    scale, shift = (None if t is None else t.to(wide) for t in (weight, bias))
    output = batch_norm(input, mean.to(wide), variance.to(wide), scale, shift, eps=eps)
    return with_promised_strides(output, input), mean, variance, counts.sum(0)


def own_sums(gradient: Tensor, input: Tensor, mean: Tensor) -> Tensor:
    """Return this rank's sums of the gradient and of its product with deviations from the mean.

    Args:
        gradient: Gradient of the result, (N, C, *).
        input: (N, C, *).
        mean: (C,), float64.

    Returns:
        (2, C), float64.
    """
    gradient, dims = gradient.to(_wide(input)), _all_but_channels(input)
    centred = input - _as(mean, input)
    return torch.stack([gradient.sum(dims), (gradient * centred).sum(dims)]).double()


def input_gradient(
    gradient: Tensor,
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    inverse_deviation: Tensor,
    count: Tensor,
    sums: Tensor,
) -> Tensor:
    """Return the gradient of the input, in the input's memory layout.

    Args:
        gradient: Gradient of the result, (N, C, *).
        input: (N, C, *).
        weight: (C,) or None.
        mean: (C,), float64.
        inverse_deviation: 1 / sqrt(variance + eps), (C,), float64.
        count: Number of samples per channel over all ranks, (1,), float64.
        sums: Sums of `own_sums` over all ranks, (2, C).
    """
    means = sums / count.clamp(min=1)
    slope = means[1] * inverse_deviation.square()
    scale = inverse_deviation if weight is None else inverse_deviation * weight
    centred = input - _as(mean, input)
    wide = torch.addcmul(gradient.to(_wide(input)), centred, _as(-slope, input))
    wide = wide.sub_(_as(means[0], input)).mul_(_as(scale, input))
    return with_promised_strides(wide.to(input.dtype), input)


def _wide(tensor: Tensor) -> torch.dtype:
    """Return the dtype to accumulate in: float32 for half-precision types."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _all_but_channels(tensor: Tensor) -> list[int]:
    return [0, *range(2, tensor.dim())]


def _as(per_channel: Tensor, like: Tensor) -> Tensor:
    """Reshape (C,) to broadcast against (N, C, *), in the accumulation dtype."""
    return per_channel.to(_wide(like)).view(1, -1, *[1] * (like.dim() - 2))
