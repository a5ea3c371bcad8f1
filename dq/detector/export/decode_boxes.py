"""Decode boxes and scores of a single-stage detector for a batch, with static shapes.

mmdet decodes image by image and first filters by a threshold, so its shapes depend on the images.
These modules compute the same numbers for every prior, so that they can be exported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmdet.core.bbox.coder import DeltaXYWHBBoxCoder, DistancePointBBoxCoder, YOLOBBoxCoder
from mmdet.models.dense_heads import GFLHead, YOLOV3Head, YOLOXHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import SingleStageDetector
from torch import Tensor, nn

# Logarithm of the maximum ratio of box and anchor sides, a constant in `DeltaXYWHBBoxCoder.decode`.
_LARGEST_STRETCH = float(np.abs(np.log(16 / 1000)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """The predictions of a head for one pyramid level.

    Attributes:
        boxes: Corners x1, y1, x2, y2 in pixels of the image, ``(N, P, 4)``.
        scores: Scores of each class, 0 to 1, ``(N, P, num_classes)``.
        factors: Factors of the scores (centerness, objectness), ``(N, P)``; None for 1.
    """

    boxes: Tensor
    scores: Tensor
    factors: Tensor | None


class Decoder(nn.Module):
    """A head's outputs -> a `Level` for each level of the pyramid.

    Args:
        head: In evaluation mode.
        outputs: Its outputs for an image, which give the sizes of the levels.
        size: Height and width of the image.

    Attributes:
        candidates: How mmdet selects candidates: the best ``pairs`` of a prior and a class by the
            class score, each prior with its best ``class``, or the best pairs by the ``product`` of
            score and factor.
    """

    border: Tensor
    candidates = "pairs"

    def __init__(self, head: Any, outputs: Sequence[Any], size: tuple[int, int]) -> None:
        super().__init__()
        self.softmax = not getattr(head, "use_sigmoid_cls", True)
        self.num_classes = int(head.num_classes)
        sizes = [scores.shape[-2:] for scores in outputs[0]]
        for index, priors in enumerate(self.priors_of(head, sizes)):
            self.register_buffer(f"priors{index}", priors.float(), persistent=False)
        border = torch.tensor([size[1], size[0], size[1], size[0]], dtype=torch.float32)
        self.register_buffer("border", border, persistent=False)

    def priors_of(self, head: Any, sizes: Sequence[Any]) -> Sequence[Tensor]:
        """Return each level's priors: boxes ``(P, 4)`` or points ``(P, 2)``."""
        found: Sequence[Tensor] = head.prior_generator.grid_priors(sizes, device="cpu")
        return found

    def boxes_of(self, index: int, predicted: Tensor, priors: Tensor) -> Tensor:
        """Decode a level's boxes ``(N, P, 4)`` from the head's predictions ``(N, P, ...)``."""
        raise NotImplementedError

    def forward(self, outputs: Sequence[Any]) -> list[Level]:
        """Return the levels of a head's outputs: scores, boxes, and factors if it has any."""
        levels = []
        for index, (scores, predicted) in enumerate(zip(outputs[0], outputs[1], strict=True)):
            scores = _flat(scores, self.num_classes + int(self.softmax))
            scores = scores.softmax(-1)[..., :-1] if self.softmax else scores.sigmoid()
            priors = getattr(self, f"priors{index}")
            width = predicted.shape[1] * predicted.shape[2] * predicted.shape[3] // len(priors)
            boxes = self.boxes_of(index, _flat(predicted, width), priors)
            factors = _flat(outputs[2][index], 1)[..., 0].sigmoid() if len(outputs) > 2 else None
            levels.append(Level(boxes=boxes, scores=scores, factors=factors))
        return levels

    def clipped(self, boxes: Tensor) -> Tensor:
        """Return the boxes clipped to the image."""
        return torch.minimum(boxes.clamp(min=0), self.border)


def _flat(maps: Tensor, num_channels: int) -> Tensor:
    """Return ``(N, priors * num_channels, H, W)`` as ``(N, H * W * priors, num_channels)``."""
    _, channels, height, width = maps.shape
    num = channels * height * width // num_channels
    return maps.permute(0, 2, 3, 1).reshape(-1, num, num_channels)


class DeltaDecoder(Decoder):
    """Deltas of anchors (shift and log scale): SSD, RetinaNet, ATSS, YOLOF."""

    means: Tensor
    stds: Tensor

    def __init__(self, head: Any, outputs: Sequence[Any], size: tuple[int, int]) -> None:
        super().__init__(head, outputs, size)
        self.coder = head.bbox_coder
        for name in ("means", "stds"):
            values = torch.tensor(getattr(self.coder, name), dtype=torch.float32)
            self.register_buffer(name, values, persistent=False)

    def boxes_of(self, index: int, predicted: Tensor, priors: Tensor) -> Tensor:
        """Return the anchors shifted relative to their sides and scaled by exponentials."""
        delta = predicted * self.stds + self.means
        centers, sides = (priors[:, :2] + priors[:, 2:]) * 0.5, priors[:, 2:] - priors[:, :2]
        shift, stretch = sides * delta[..., :2], delta[..., 2:]
        if self.coder.add_ctr_clamp:
            shift = shift.clamp(-self.coder.ctr_clamp, self.coder.ctr_clamp)
            stretch = stretch.clamp(max=_LARGEST_STRETCH)
        else:
            stretch = stretch.clamp(-_LARGEST_STRETCH, _LARGEST_STRETCH)
        centers, half = centers + shift, sides * stretch.exp() * 0.5
        boxes = torch.cat([centers - half, centers + half], -1)
        return self.clipped(boxes) if self.coder.clip_border else boxes


class DistanceDecoder(Decoder):
    """Distances from points to the four sides: FCOS."""

    def __init__(self, head: Any, outputs: Sequence[Any], size: tuple[int, int]) -> None:
        super().__init__(head, outputs, size)
        self.coder = head.bbox_coder

    def boxes_of(self, index: int, predicted: Tensor, priors: Tensor) -> Tensor:
        """Return the boxes with these distances left, above, right and below the points."""
        boxes = torch.cat([priors - predicted[..., :2], priors + predicted[..., 2:]], -1)
        return self.clipped(boxes) if self.coder.clip_border else boxes


class DistributionDecoder(DistanceDecoder):
    """Distributions of the distances to the four sides: GFL."""

    project: Tensor

    def __init__(self, head: Any, outputs: Sequence[Any], size: tuple[int, int]) -> None:
        super().__init__(head, outputs, size)
        self.strides = [stride[0] for stride in head.prior_generator.strides]
        self.register_buffer("project", head.integral.project.float(), persistent=False)

    def priors_of(self, head: Any, sizes: Sequence[Any]) -> Sequence[Tensor]:
        """Return the centers of each level's anchors."""
        return [head.anchor_center(anchors) for anchors in super().priors_of(head, sizes)]

    def boxes_of(self, index: int, predicted: Tensor, priors: Tensor) -> Tensor:
        """Return the boxes at the distributions' means, in units of strides."""
        shape = (-1, len(priors), 4, len(self.project))
        means = (predicted.reshape(shape).softmax(-1) * self.project).sum(-1)
        return super().boxes_of(index, means * self.strides[index], priors)


class StrideDecoder(Decoder):
    """Shifts in strides and exponentials of sides, without clipping: YOLOX."""

    candidates = "class"

    def priors_of(self, head: Any, sizes: Sequence[Any]) -> Sequence[Tensor]:
        """Return each level's points with their strides, ``(P, 4)``."""
        found: Sequence[Tensor] = head.prior_generator.grid_priors(
            sizes, device="cpu", with_stride=True
        )
        return found

    def boxes_of(self, index: int, predicted: Tensor, priors: Tensor) -> Tensor:
        """Return the boxes around the shifted points."""
        points, strides = priors[:, :2], priors[:, 2:]
        centers = predicted[..., :2] * strides + points
        half = predicted[..., 2:].exp() * strides / 2
        return torch.cat([centers - half, centers + half], -1)


class GridDecoder(Decoder):
    """Positions in grid cells and exponentials of anchor sides, without clipping: YOLOv3."""

    candidates = "product"

    def __init__(self, head: Any, outputs: Sequence[Any], size: tuple[int, int]) -> None:
        super().__init__(head, outputs, size)
        self.strides = [float(stride) for stride in head.featmap_strides]

    def forward(self, outputs: Sequence[Any]) -> list[Level]:
        """Return the levels of a head with boxes, objectness and classes in one map per level."""
        levels = []
        for index, maps in enumerate(outputs[0]):
            values = _flat(maps, 5 + self.num_classes)
            boxes = self.boxes_of(index, values[..., :4], getattr(self, f"priors{index}"))
            scores, factors = values[..., 5:].sigmoid(), values[..., 4].sigmoid()
            levels.append(Level(boxes=boxes, scores=scores, factors=factors))
        return levels

    def boxes_of(self, index: int, predicted: Tensor, priors: Tensor) -> Tensor:
        """Return the boxes at positions in the anchors' cells."""
        shift = (predicted[..., :2].sigmoid() - 0.5) * self.strides[index]
        centers = (priors[:, :2] + priors[:, 2:]) * 0.5 + shift
        half = (priors[:, 2:] - priors[:, :2]) * 0.5 * predicted[..., 2:].exp()
        return torch.cat([centers - half, centers + half], -1)


def decoder_of(detector: nn.Module, outputs: Any, size: tuple[int, int]) -> Decoder:
    """Return the decoder of a single-stage detector.

    Args:
        detector: In evaluation mode.
        outputs: Outputs of its graph for an image.
        size: Height and width of that image.

    Raises:
        ValueError: None of our decoders computes its boxes.
    """
    head = getattr(detector, "bbox_head", None)
    whole = getattr(type(detector), "simple_test", None) is SingleStageDetector.simple_test
    kind = None if isinstance(outputs, Mapping) or not whole else _kind_of(head)
    if kind is None:
        name = type(detector).__name__ + (f" with {type(head).__name__}" if head else "")
        raise ValueError(
            f"{name} cannot be decoded in ONNX; export with --decode none and decode after the"
            " model (decoded are mmdet's SSD, RetinaNet, ATSS, YOLOF, FCOS, GFL, YOLOv3 and YOLOX"
            " heads)"
        )
    return kind(head, outputs, size).eval()


def _kind_of(head: Any) -> Callable[..., Decoder] | None:
    own = type(head)
    if _same(own, YOLOXHead, "get_bboxes", "_bbox_decode", "_bboxes_nms"):
        return StrideDecoder
    if _same(own, YOLOV3Head, "get_bboxes") and type(head.bbox_coder) is YOLOBBoxCoder:
        return GridDecoder
    if not _same(own, BaseDenseHead, "get_bboxes", "_bbox_post_process"):
        return None
    coder = type(getattr(head, "bbox_coder", None))
    if _same(own, GFLHead, "_get_bboxes_single") and coder is DistancePointBBoxCoder:
        return DistributionDecoder
    if _same(own, BaseDenseHead, "_get_bboxes_single"):
        return {DeltaXYWHBBoxCoder: DeltaDecoder, DistancePointBBoxCoder: DistanceDecoder}.get(
            coder
        )
    return None


def _same(kind: type, other: type, *names: str) -> bool:
    """Return whether a class inherits these methods from the other one, unchanged."""
    return all(getattr(kind, name, None) is getattr(other, name) for name in names)


def clips(head: Any) -> bool:
    """Return whether a head clips boxes to the image."""
    return bool(getattr(getattr(head, "bbox_coder", None), "clip_border", False))


class Boxes(nn.Module):
    """A head's outputs -> boxes ``(N, P, 4)`` and scores ``(N, P, num_classes)`` of all priors."""

    NAMES = ("boxes", "scores")

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, outputs: Sequence[Any]) -> tuple[Tensor, ...]:
        """Return the boxes and scores of all levels, concatenated."""
        levels = self.decoder(outputs)
        scores = [
            level.scores if level.factors is None else level.scores * level.factors[..., None]
            for level in levels
        ]
        return torch.cat([level.boxes for level in levels], 1), torch.cat(scores, 1)
