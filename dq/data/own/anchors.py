"""Fit anchors to the boxes of a data set: k-means on widths and heights, as YOLO does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Shapes = NDArray[np.float64]

ROUNDS = 100
# More boxes would change the result by less than its rounding.
MOST = 20_000
# Without enough different boxes anchors vary by these factors.
_SPREAD = (1.0, 1.4, 0.7, 2.0, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchors:
    """Anchors of each level of a pyramid, and how well they fit.

    Attributes:
        sizes: Widths and heights in pixels, ``(levels, per_level, 2)``.
        mean_iou: Mean over the boxes of the overlap with the best anchor of the same center.
        matched: Share of boxes for which it is at least 0.5.
    """

    sizes: tuple[tuple[tuple[int, int], ...], ...]
    mean_iou: float
    matched: float


def fit_anchors(shapes: Shapes, strides: Sequence[int], per_level: int, side: int) -> Anchors:
    """Return anchors for boxes of these shapes.

    The range of scales is shared out to the levels in equal ratios, and each level's anchors are
    the k-means of its own boxes. k-means of all boxes would give nearly all anchors to the most
    frequent size, and rare sizes would hardly be trained. No anchor is smaller than its level's
    stride, because the gaps between its positions would be larger than the anchor. Levels without
    boxes, or too coarse for any, get larger copies of the anchors before.

    Args:
        shapes: Width and height of the boxes in pixels of the network's input, ``(n, 2)``, n > 0.
        strides: Of the levels, the finest first.
        per_level: Anchors at each position.
        side: Of the network's input in pixels; no anchor is longer.
    """
    boxes = shapes[np.argsort(shapes.prod(axis=1), kind="stable")]
    boxes = boxes[:: -(-len(boxes) // MOST)]
    scales = np.sqrt(boxes.prod(axis=1))
    shortest, longest = np.quantile(scales, (0.02, 0.95))
    used = max(1, sum(stride <= longest for stride in strides))
    edges = np.geomspace(shortest, longest, used + 1)[1:-1]
    share = np.searchsorted(edges, scales, side="right")
    levels: list[Shapes] = []
    for level, stride in enumerate(strides):
        mine = boxes[share == level]
        own = _means(mine, per_level) if len(mine) else levels[-1] * 2
        scale = np.sqrt(own.prod(axis=1, keepdims=True))
        levels.append(np.clip(own * np.maximum(1.0, stride / scale), 2, side))
    sizes = np.stack(levels).round().astype(int)
    best = overlaps(boxes, sizes.reshape(-1, 2).astype(float)).max(axis=1)
    return Anchors(
        sizes=tuple(tuple((int(w), int(h)) for w, h in level) for level in sizes),
        mean_iou=float(best.mean()),
        matched=float((best >= 0.5).mean()),
    )


def overlaps(shapes: Shapes, others: Shapes) -> Shapes:
    """Return intersection over union of shapes with the same center, ``(n, m)``."""
    common = np.minimum(shapes[:, None], others[None]).prod(axis=2)
    both = shapes.prod(axis=1)[:, None] + others.prod(axis=1)[None]
    found: Shapes = common / (both - common)
    return found


def _means(boxes: Shapes, number: int) -> Shapes:
    """Return the centers of k-means by overlap, sorted by area, ``(number, 2)``."""
    different = np.unique(boxes.round(1), axis=0)
    if len(different) < number:
        # As many as are needed: the boxes themselves, then larger and smaller ones.
        factors = [_SPREAD[n % len(_SPREAD)] * (1 + n // len(_SPREAD)) for n in range(number)]
        several = np.concatenate([different * factor for factor in factors])[:number]
        return _by_area(several)
    places = np.linspace(0, len(boxes) - 1, number).round().astype(int)
    centers = boxes[places]
    for _ in range(ROUNDS):
        nearest = overlaps(boxes, centers).argmax(axis=1)
        moved = np.stack(
            [
                np.median(boxes[nearest == k], axis=0) if (nearest == k).any() else centers[k]
                for k in range(number)
            ]
        )
        if np.array_equal(moved, centers):
            break
        centers = moved
    return _by_area(centers)


def _by_area(shapes: Shapes) -> Shapes:
    return shapes[np.argsort(shapes.prod(axis=1), kind="stable")]
