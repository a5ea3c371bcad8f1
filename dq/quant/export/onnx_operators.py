"""ONNX translations of operators that torch.onnx does not support."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# The first version of ONNX with DeformConv.
OPSET_DEFORMABLE = 19


def translations() -> dict[Any, Callable[..., Any]]:
    """Return torch.onnx's argument ``custom_translation_table``."""
    import torchvision  # noqa: F401  (registers its operators)

    return {torch.ops.torchvision.deform_conv2d.default: _deformable}


def _deformable(x: Any, weight: Any, offset: Any, mask: Any, bias: Any, *settings: Any) -> Any:
    """Return ONNX's DeformConv, which uses the same tensor layouts as torchvision."""
    from onnxscript import opset19 as op

    stride, padding, dilation = (list(settings[start : start + 2]) for start in (0, 2, 4))
    groups, offset_groups, masked = settings[6:9]
    inputs = [x, weight, offset, bias, mask] if masked else [x, weight, offset, bias]
    return op.DeformConv(
        *inputs,
        strides=stride,
        pads=[*padding, *padding],
        dilations=dilation,
        group=groups,
        offset_group=offset_groups,
    )
