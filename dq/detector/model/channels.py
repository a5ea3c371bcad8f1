"""Find the number of channels of a detector's images."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
# Side of the square test image.
SIDE = 64
# Candidates if the first layer does not get the image itself: in YOLOX it gets four slices of the
# image as channels.
USUAL = (3, 1, 4, 2, 6)


class _ReachedError(Exception):
    """The first layer has accepted its input."""


def input_channels(detector: nn.Module) -> int:
    """Return the number of image channels that the detector needs.

    It is found by trying, because a backbone may do anything with the image before its first layer.

    Args:
        detector: An mmdet detector, float or quantized; its state does not change.
    """
    backbone: Any = getattr(detector, "backbone", None)
    if not isinstance(backbone, nn.Module):
        return USUAL[0]
    layers = [module for module in backbone.modules() if isinstance(module, LAYERS)]
    if not layers:
        return USUAL[0]
    first = int(getattr(layers[0], "in_channels", 0) or getattr(layers[0], "in_features", 0))
    candidates = [first, *((first // 4,) if first % 4 == 0 else ()), *USUAL]
    modes = {module: module.training for module in backbone.modules()}
    handles = [layer.register_forward_hook(_stop) for layer in layers]
    try:
        for module in modes:
            module.training = False  # A norm before the first layer must not update its statistics.
        return next((n for n in candidates if n and _fits(backbone, n)), USUAL[0])
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode


def _stop(*_: Any) -> None:
    raise _ReachedError


@torch.no_grad()
def _fits(backbone: nn.Module, number: int) -> bool:
    some = next(backbone.parameters())
    image = torch.zeros(1, number, SIDE, SIDE, device=some.device, dtype=some.dtype)
    try:
        backbone(image)
    except _ReachedError:
        return True
    except Exception:  # a layer may raise anything for a wrong number of channels
        return False
    return True
