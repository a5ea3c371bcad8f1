"""Batch normalization over the samples of all ranks, in plain tensor operations with a gradient."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import batch_norm

from dq.dist import collectives

Group = dist.ProcessGroup | None


def gather_moments(input: Tensor, group: Group = None) -> tuple[Tensor, Tensor, float]:
    """Compute mean and variance of each channel over the samples of all ranks.

    Each rank computes its own mean and sum of squared deviations, and the formula of Chan, Golub
    and LeVeque ("Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979)
    merges them: nothing cancels, as it would in E[x^2] - E[x]^2. One collective; every rank must
    call it, at the same step, a rank without samples too.

    Args:
        input: (N, C, *), floating; N may differ from rank to rank and may be 0.
        group: the ranks whose samples count; all by default.

    Returns:
        Mean (C,) and biased variance (C,), float64, and the number of samples of a channel.
    """
    input, channels = input.detach(), input.shape[1]
    count = input.numel() // channels
    own = torch.zeros(2 * channels + 1, dtype=torch.float64, device=input.device)
    if count > 0:
        dims = _all_but_channels(input)
        mean = input.to(_wide(input)).mean(dims)
        squares = (input - _as(mean, input)).square_().sum(dims)
        own[:channels], own[channels:-1], own[-1] = mean, squares, count
    gathered = collectives.all_gather(own, group)
    means, squares, counts = torch.split(gathered, [channels, channels, 1], dim=1)
    total = counts.sum().clamp(min=1)
    mean = (means * counts).sum(0) / total
    variance = (squares + counts * (means - mean).square()).sum(0) / total
    return mean, variance, float(counts.sum())


class NormalizeOverRanks(torch.autograd.Function):
    """Normalize by moments of all ranks; the gradient follows the samples of all ranks too."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        count: float,
        group: Group,
    ) -> Tensor:
        """Normalize, scale and shift.

        Args:
            ctx: the context of autograd.
            input: (N, C, *), floating.
            weight: (C,) or None.
            bias: (C,) or None.
            mean: (C,), float64, over all ranks.
            variance: (C,), float64, biased, over all ranks.
            eps: added to the variance.
            count: samples of a channel over all ranks.
            group: the ranks whose samples count; all by default.

        Returns:
            (N, C, *), with the dtype of the input.
        """
        ctx.save_for_backward(input, weight, bias, mean, (variance + eps).rsqrt())
        ctx.count, ctx.group = count, group
        mean, variance = mean.to(_wide(input)), variance.to(_wide(input))
        weight, bias = (None if t is None else t.to(mean.dtype) for t in (weight, bias))
        return batch_norm(input, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients; one collective, when the input needs one.

        Those of weight and bias are this rank's own share, as DDP expects.
        """
        input, weight, bias, mean, inverse_deviation = ctx.saved_tensors
        grad = grad_output.to(_wide(input))
        centred = input - _as(mean, input)
        dims = _all_but_channels(input)
        sums = torch.stack([grad.sum(dims), (grad * centred).sum(dims)]).double()
        grad_input = grad_weight = grad_bias = None
        if weight is not None and ctx.needs_input_grad[1]:
            grad_weight = (sums[1] * inverse_deviation).to(weight.dtype)
        if bias is not None and ctx.needs_input_grad[2]:
            grad_bias = sums[0].to(bias.dtype)
        if ctx.needs_input_grad[0]:
            # A copy, for float64 gradients above are views of the sums.
            means = collectives.all_reduce_(sums.clone(), "sum", ctx.group) / max(ctx.count, 1.0)
            slope = means[1] * inverse_deviation.square()
            scale = inverse_deviation if weight is None else inverse_deviation * weight
            wide = centred.mul_(_as(-slope, input)).add_(grad).sub_(_as(means[0], input))
            grad_input = wide.mul_(_as(scale, input)).to(input.dtype)
        return grad_input, grad_weight, grad_bias, None, None, None, None, None


def _wide(tensor: Tensor) -> torch.dtype:
    """Choose the dtype to accumulate in: float32 for the half types."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _all_but_channels(tensor: Tensor) -> list[int]:
    return [0, *range(2, tensor.dim())]


def _as(per_channel: Tensor, like: Tensor) -> Tensor:
    """Shape (C,) to broadcast against (N, C, *), in its wide dtype."""
    return per_channel.to(_wide(like)).view(1, -1, *[1] * (like.dim() - 2))
