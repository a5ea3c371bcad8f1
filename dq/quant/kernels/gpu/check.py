"""A check, once per process, that the kernels on this GPU give the results of torch's operators."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from dq.error_text import typed_error_text

log = logging.getLogger(__name__)

_INTEGERS = [-127, 127, 1, 1, 0, 1]


def kernels_work(device: torch.device) -> bool:
    """Say whether results on small tensors are equal to torch's; if not, warn with the reason.

    An untested driver, Triton or GPU may cost speed but must never change a result.

    Args:
        device: The GPU.
    """
    try:
        wrong = _first_difference(device)
    except Exception as error:  # A compiler or driver may raise anything.
        wrong = typed_error_text(error)[:200]
    if wrong is None:
        return True
    log.warning(
        "the kernels for a GPU are not used, training is slower: %s (DQ_NATIVE=0 hides this)", wrong
    )
    return False


def _first_difference(device: torch.device) -> str | None:
    from dq.quant.kernels.gpu import ops
    from dq.quant.kernels.together import row_table, views_of

    x = torch.linspace(-3.0, 9.0, 5000, device=device)
    scale = torch.tensor(0.0217, device=device)
    zero_point = torch.tensor(17, dtype=torch.int32, device=device)
    y, mask = torch.empty_like(x), torch.empty_like(x, dtype=torch.uint8)
    record = torch.full((), torch.inf, device=device), torch.full((), -torch.inf, device=device)
    ops.activate(x, y, mask, scale, zero_point, (0, 255, 0.0, 6.0), record)
    cut = x.clamp(0.0, 6.0)
    if not torch.equal(y, torch.fake_quantize_per_tensor_affine(cut, scale, zero_point, 0, 255)):
        return "fake-quantized activations differ from torch's"
    if [float(r) for r in record] != [float(cut.min()), float(cut.max())]:
        return "observed ranges differ from torch's"
    weight = x[:4995].reshape(15, 333)
    expected = _rounded(weight)
    if not torch.equal(ops.rounded_weight(weight, None, None, None, _INTEGERS, False), expected):
        return "fake-quantized weights differ from torch's"
    several = [weight, weight[:4]]
    table = row_table(several).to(device)
    flat = ops.rounded_weights(several, table, (None, None, None), _INTEGERS, False)
    for found, wanted in zip(views_of(flat, several), (expected, expected[:4]), strict=True):
        if not torch.equal(found, wanted):
            return "weights that are fake-quantized together differ from torch's"
    return _first_different_gradient(x, (scale, zero_point), mask, table)


@torch.enable_grad()
def _first_different_gradient(
    x: Tensor, of_activation: tuple[Tensor, Tensor], mask: Tensor, table: Tensor
) -> str | None:
    """Return which gradient differs from torch's; None if all are equal.

    Args:
        x: The 5000 values.
        of_activation: Their scale and zero point as an activation.
        mask: The gradient mask from the forward pass of that activation.
        table: Of the two weights that share these values.
    """
    from dq.quant.kernels.gpu import ops

    gradient = torch.linspace(-1.0, 1.0, len(x), device=x.device)
    leaf = x.clone().requires_grad_()
    cut = leaf.clamp(0.0, 6.0)
    rounded = torch.fake_quantize_per_tensor_affine(cut, *of_activation, 0, 255)
    (expected,) = torch.autograd.grad(rounded, leaf, gradient)
    if not torch.equal(ops.masked_gradient(gradient, mask), expected):
        return "gradients of activations differ from torch's"
    found, _ = ops.learned_gradients(gradient, x, *of_activation, (0, 255, 0.0, 6.0), False)
    if not torch.equal(found, expected):
        return "gradients of activations with learned scales differ from torch's"
    weight, of_weight = x[:4995].reshape(15, 333), gradient[:4995].reshape(15, 333)
    leaf = weight.clone().requires_grad_()
    (expected,) = torch.autograd.grad(_rounded(leaf), leaf, of_weight)
    both, flat = [weight, weight[:4]], torch.cat([of_weight.flatten(), of_weight[:4].flatten()])
    nothing = (None, None, None)
    found = ops.weights_gradients(flat, both, table, nothing, _INTEGERS, False, [False, False])[0]
    if not torch.equal(found, torch.cat([expected.flatten(), expected[:4].flatten()])):
        return "gradients of weights differ from torch's"
    return None


def _rounded(weight: Tensor) -> Tensor:
    scale = weight.detach().abs().amax(1) / _INTEGERS[1]
    zero_point = torch.zeros_like(scale)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero_point, 0, *_INTEGERS[:2])
