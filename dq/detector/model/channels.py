"""Find the number of channels of a detector's images."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dq.quant.quantizers.restore import restored_state, watching_outputs

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
    layers = {name: m for name, m in backbone.named_modules() if isinstance(m, LAYERS)}
    if not layers:
        return USUAL[0]
    layer = next(iter(layers.values()))
    first = int(getattr(layer, "in_channels", 0) or getattr(layer, "in_features", 0))
    candidates = [first, *((first // 4,) if first % 4 == 0 else ()), *USUAL]
    with restored_state(backbone), watching_outputs(layers, _stop):
        for module in backbone.modules():
            module.training = False  # A norm before the first layer must not learn.
        return next((n for n in candidates if n and _fits(backbone, n)), USUAL[0])


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
