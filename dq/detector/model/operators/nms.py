"""NMS on a GPU if mmcv-full was compiled for the CPU only."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor
from torchvision.ops import nms as torchvision_nms


class TorchvisionNms:
    """mmcv's compiled operators, with torchvision's NMS for tensors on a GPU.

    Args:
        compiled: mmcv's extension module; everything except ``nms`` on a GPU is passed to it.
    """

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled

    def nms(self, boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
        """Return indices of the boxes to keep, highest score first, as mmcv's operator does.

        Args:
            boxes: Corners ``(N, 4)``.
            scores: ``(N,)``.
            iou_threshold: Boxes that overlap a better one by more are removed.
            offset: 1 if corners are inclusive pixels.
        """
        if boxes.device.type == "cpu" and self.compiled is not None:
            kept: Tensor = self.compiled.nms(
                boxes, scores, iou_threshold=iou_threshold, offset=offset
            )
            return kept
        grown = boxes.clone()
        grown[:, 2:] += offset
        found: Tensor = torchvision_nms(grown, scores, iou_threshold)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.compiled, name)


def operators_module() -> Any:
    """Return the module ``mmcv.ops.nms``; in the package, the function hides its name."""
    return importlib.import_module("mmcv.ops.nms")


def use_torchvision_nms() -> None:
    """Make mmcv's ``nms`` use torchvision's operator on a GPU; a second call has no effect."""
    module = operators_module()
    if not isinstance(module.ext_module, TorchvisionNms):
        module.ext_module = TorchvisionNms(module.ext_module)
