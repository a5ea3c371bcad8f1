"""Batch normalization over the samples of all ranks as one operator with a gradient.

It is a custom operator of torch, so torch.compile keeps it whole in its graph and compiles the rest
as if there were no collective. The passes over memory are those of `dq.dist.norm.native_passes` if
they support the tensors, else those of `dq.dist.norm.torch_passes`.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from dq.dist.exchange import collectives
from dq.dist.norm import native_passes as native_batch_norm
from dq.dist.norm import torch_passes as torch_batch_norm
from dq.native import with_layout_of

Group = dist.ProcessGroup | None


@torch.library.custom_op("dq::normalize_over_ranks", mutates_args=())
def normalize_over_ranks(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalize by the moments of all ranks, scale and shift; one collective, one in backward.

    Each rank computes its own mean and sum of squared deviations. The formula of Chan, Golub and
    LeVeque ("Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979)
    merges them without the cancellation of E[x^2] - E[x]^2. The gradient of the input includes the
    samples of all ranks; those of weight and bias are this rank's own share, as DDP expects.
    Every rank must call it, at the same step, also a rank without samples.

    Args:
        input: (N, C, *), floating; N may differ between ranks and may be 0.
        weight: (C,) or None.
        bias: (C,) or None.
        eps: Added to the variance.
        group: Name of the group of ranks; empty for all.

    Returns:
        (N, C, *) with the dtype of the input; mean (C,), biased variance (C,) and the number of
        samples per channel (1,) over all ranks, float64.

    Raises:
        ValueError: All ranks together have only one sample per channel.
    """
    native = native_batch_norm.takes(input, weight, bias)
    passes = native_batch_norm if native else torch_batch_norm
    gathered = collectives.all_gather(passes.own_moments(input), _named(group))
    output, mean, variance, count = passes.normalize(input, gathered, weight, bias, eps)
    # A rank with two samples need not look at the sum, which would wait for the device.
    if input.numel() // input.shape[1] < 2 and float(count) == 1:
        raise ValueError(
            f"batch normalization in training needs more than one sample of a channel over "
            f"all ranks, but has one: input {tuple(input.shape)} on rank {collectives.rank()}"
        )
    return output, mean, variance, count


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
    """Return the input's gradient (empty if not needed) and this rank's sums, (2, C)."""
    native = native_batch_norm.takes(input, weight, None) and grad_output.dtype == input.dtype
    passes = native_batch_norm if native else torch_batch_norm
    if native:
        grad_output = with_layout_of(grad_output, input)
    sums = passes.own_sums(grad_output, input, mean)
    if not wants_input:
        return input.new_empty(0), sums
    all_sums = collectives.all_reduce_(sums.clone(), "sum", _named(group))
    grad_input = passes.input_gradient(
        grad_output, input, weight, mean, inverse_deviation, count, all_sums
    )
    return grad_input, sums


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
    input, weight, bias, eps, ctx.group = inputs
    _, mean, variance, count = output
    ctx.mark_non_differentiable(mean, variance, count)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, weight, bias, mean, (variance + eps).rsqrt(), count)


def _gradients(ctx: Any, grad_output: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    input, weight, bias, mean, inverse_deviation, count = ctx.saved_tensors
    assert grad_output is not None
    wanted = ctx.needs_input_grad[0]
    grad_input, sums = _backward(
        grad_output, input, weight, mean, inverse_deviation, count, ctx.group, wanted
    )
    grad_weight = grad_bias = None
    if weight is not None and ctx.needs_input_grad[1]:
        grad_weight = (sums[1] * inverse_deviation).to(weight.dtype)
    if bias is not None and ctx.needs_input_grad[2]:
        grad_bias = sums[0].to(bias.dtype)
    return grad_input if wanted else None, grad_weight, grad_bias, None, None


normalize_over_ranks.register_autograd(_gradients, setup_context=_keep)


def _named(group: str) -> Group:
    if not group:
        return None
    # torch's own compiled collectives find their groups in the same way.
    return distributed_c10d._resolve_process_group(group)  # type: ignore[attr-defined, arg-type]
