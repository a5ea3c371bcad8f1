"""Find batch norms that were folded into their layers and have no statistics of their own."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def has_folded_norms(detector: nn.Module) -> bool:
    """Return whether a batch norm has the statistics of a new one although it was trained.

    A published checkpoint may have its norms folded into the convolutions: mean 0 and variance 1
    remain, and a bias. Such a detector breaks if a training updates these statistics, or uses
    those of the batch.

    Args:
        detector: With its float weights.
    """
    return any(_is_folded(m) for m in detector.modules() if isinstance(m, _BatchNorm))


def _is_folded(norm: _BatchNorm) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None or norm.bias is None:
        return False
    # Some tools store 1 - eps, so that the norm is an exact identity.
    constant = (variance - 1.0).abs().max() <= 2 * norm.eps
    return bool(constant) and not bool(mean.any()) and bool(norm.bias.any())
