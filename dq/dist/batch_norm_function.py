"""Batch normalization over the samples of all ranks as one operator with a gradient.

It is a custom operator of torch, so torch.compile keeps it whole in the middle of its graph: what
surrounds it is compiled as if no collective were there.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.nn.functional import batch_norm

from dq.dist import collectives

Group = dist.ProcessGroup | None


def gather_moments(input: Tensor, group: Group = None) -> tuple[Tensor, Tensor, Tensor]:
    """Compute mean and variance of each channel over the samples of all ranks.

    Each rank computes its own mean and sum of squared deviations, and the formula of Chan, Golub
    and LeVeque ("Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979)
    merges them: nothing cancels, as it would in E[x^2] - E[x]^2. One collective; every rank must
    call it, at the same step, a rank without samples too.

    Args:
        input: (N, C, *), floating; N may differ from rank to rank and may be 0.
        group: the ranks whose samples count; all by default.

    Returns:
        Mean (C,) and biased variance (C,), and the number of samples of a channel (1,); float64.
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
    return mean, variance, counts.sum(0)


@torch.library.custom_op("dq::normalize_over_ranks", mutates_args=())
def normalize_over_ranks(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalize by the moments of all ranks, scale and shift; one collective, one in the gradient.

    The gradient of the input follows the samples of all ranks; those of weight and bias are this
    rank's own share, as DDP expects. Every rank must call it, at the same step.

    Args:
        input: (N, C, *), floating.
        weight: (C,) or None.
        bias: (C,) or None.
        eps: added to the variance.
        group: name of the ranks whose samples count; empty for all.

    Returns:
        (N, C, *) with the dtype of the input, and what `gather_moments` returns.

    Raises:
        ValueError: all ranks together have but one sample of a channel.
    """
    mean, variance, count = gather_moments(input, _named(group))
    # A rank that has two samples itself need not look, which would wait for the device.
    if input.numel() // input.shape[1] < 2 and float(count) == 1:
        raise ValueError(
            f"batch normalization in training needs more than one sample of a channel over "
            f"all ranks, but has one: input {tuple(input.shape)} on rank {collectives.rank()}"
        )
    wide = _wide(input)
    scale, shift = (None if t is None else t.to(wide) for t in (weight, bias))
    output = batch_norm(input, mean.to(wide), variance.to(wide), scale, shift, eps=eps)
    return _laid_out_as(input, output), mean, variance, count


@normalize_over_ranks.register_fake
def _(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, variance, count = (
        input.new_empty(size, dtype=torch.float64) for size in (input.shape[1], input.shape[1], 1)
    )
    return torch.empty_like(input), mean, variance, count


@torch.library.custom_op("dq::normalize_over_ranks_backward", mutates_args=())
def _backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    inverse_deviation: Tensor,
    count: Tensor,
    group: str,
    wants_input: bool,
) -> tuple[Tensor, Tensor]:
    """Return the input's gradient (an empty one where unwanted) and this rank's sums, (2, C)."""
    grad = grad_output.to(_wide(input))
    centred = input - _as(mean, input)
    dims = _all_but_channels(input)
    sums = torch.stack([grad.sum(dims), (grad * centred).sum(dims)]).double()
    if not wants_input:
        return input.new_empty(0), sums
    means = collectives.all_reduce_(sums.clone(), "sum", _named(group)) / count.clamp(min=1)
    slope = means[1] * inverse_deviation.square()
    scale = inverse_deviation if weight is None else inverse_deviation * weight
    wide = centred.mul_(_as(-slope, input)).add_(grad).sub_(_as(means[0], input))
    grad_input = wide.mul_(_as(scale, input)).to(input.dtype)
    return _laid_out_as(input, grad_input), sums


@_backward.register_fake
def _(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    inverse_deviation: Tensor,
    count: Tensor,
    group: str,
    wants_input: bool,
) -> tuple[Tensor, Tensor]:
    sums = input.new_empty((2, input.shape[1]), dtype=torch.float64)
    return torch.empty_like(input) if wants_input else input.new_empty(0), sums


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, weight, bias, eps, group = inputs
    _, mean, variance, count = output
    ctx.mark_non_differentiable(mean, variance, count)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, weight, bias, mean, (variance + eps).rsqrt(), count)
    ctx.group = group


def _gradients(ctx: Any, grad_output: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    input, weight, bias, mean, inverse_deviation, count = ctx.saved_tensors
    assert grad_output is not None
    grad_input, sums = _backward(
        grad_output, input, weight, mean, inverse_deviation, count, ctx.group,
        ctx.needs_input_grad[0],
    )  # fmt: skip
    grad_weight = grad_bias = None
    if weight is not None and ctx.needs_input_grad[1]:
        grad_weight = (sums[1] * inverse_deviation).to(weight.dtype)
    if bias is not None and ctx.needs_input_grad[2]:
        grad_bias = sums[0].to(bias.dtype)
    wanted = ctx.needs_input_grad[0]
    return grad_input if wanted else None, grad_weight, grad_bias, None, None


normalize_over_ranks.register_autograd(_gradients, setup_context=_keep)


def _named(group: str) -> Group:
    if not group:
        return None
    # torch's own compiled collectives find their groups so.
    return distributed_c10d._resolve_process_group(group)  # type: ignore[attr-defined, arg-type]


def _laid_out_as(like: Tensor, tensor: Tensor) -> Tensor:
    """Return the tensor with the strides that the operator promises the compiler."""
    promised = torch.empty_like(like)
    return tensor if tensor.stride() == promised.stride() else promised.copy_(tensor)


def _wide(tensor: Tensor) -> torch.dtype:
    """Choose the dtype to accumulate in: float32 for the half types."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _all_but_channels(tensor: Tensor) -> list[int]:
    return [0, *range(2, tensor.dim())]


def _as(per_channel: Tensor, like: Tensor) -> Tensor:
    """Shape (C,) to broadcast against (N, C, *), in its wide dtype."""
    return per_channel.to(_wide(like)).view(1, -1, *[1] * (like.dim() - 2))
