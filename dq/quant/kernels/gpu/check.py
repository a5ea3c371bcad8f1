"""A look, once a process, whether the kernels compute on this GPU what torch's operators do."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_INTEGERS = [-127, 127, 1, 1, 0, 1]


def kernels_work(device: torch.device) -> bool:
    """Say whether small tensors come out equal; where not, a warning says why.

    A driver, a Triton or a GPU that nobody has tried must cost speed and never a number.

    Args:
        device: The GPU.
    """
    try:
        wrong = _first_difference(device)
    except Exception as error:  # Whatever a compiler or a driver may raise.
        reason = " ".join(str(error).split())[:200]
        wrong = f"{type(error).__name__}: {reason}"
    if wrong is None:
        return True
    log.warning(
        "the kernels for a GPU are not used, training is slower: %s (DQ_NATIVE=0 hides this)", wrong
    )
    return False


def _first_difference(device: torch.device) -> str | None:
    from dq.quant.kernels.gpu import ops

    x = torch.linspace(-3.0, 9.0, 5000, device=device)
    scale = torch.tensor(0.0217, device=device)
    zero_point = torch.tensor(17, dtype=torch.int32, device=device)
    y, mask = torch.empty_like(x), torch.empty_like(x, dtype=torch.uint8)
    record = torch.full((), torch.inf, device=device), torch.full((), -torch.inf, device=device)
    ops.activate(x, y, mask, scale, zero_point, (0, 255, 0.0, 6.0), record)
    cut = x.clamp(0.0, 6.0)
    if not torch.equal(y, torch.fake_quantize_per_tensor_affine(cut, scale, zero_point, 0, 255)):
        return "rounded activations differ from torch's"
    if [float(r) for r in record] != [float(cut.min()), float(cut.max())]:
        return "observed ranges differ from torch's"
    weight = x[:4995].reshape(15, 333)
    expected = _rounded(weight)
    if not torch.equal(ops.rounded_weight(weight, None, None, None, _INTEGERS, False), expected):
        return "rounded weights differ from torch's"
    return None


def _rounded(weight: Tensor) -> Tensor:
    scale = weight.abs().amax(1) / _INTEGERS[1]
    zero_point = torch.zeros_like(scale)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero_point, 0, *_INTEGERS[:2])
