"""Fit anchors to the boxes of a data set: k-means on widths and heights, as YOLO does.

An anchor stands at every cell of its level, so the nearest one is up to half a stride away from a
box in each direction. A box that is as large as the stride is then often overlapped by less than a
half, however well the shape fits. So boxes go to levels whose stride is at most half their scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Shapes = NDArray[np.float64]

ROUNDS = 100
# The smallest box that belongs to a level, in strides. Of 0, 1, 1.5, 2, 3 and 4 this matched the
# most boxes on all data sets and sizes tried, except without a level of stride 8.
LEAST_STRIDES = 2.0
# More boxes would change the result by less than its rounding.
MOST = 20_000
# If there are fewer different boxes than anchors, the anchors are boxes times these factors.
_SPREAD = (1.0, 1.4, 0.7, 2.0, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchors:
    """Anchors of each level of a pyramid, and how well they fit.

    Attributes:
        sizes: Widths and heights in pixels, ``(levels, per_level, 2)``.
        mean_iou: Mean over the boxes, anywhere in the image, of the overlap with the best anchor.
        matched: Share of boxes for which it is at least 0.5.
    """

    sizes: tuple[tuple[tuple[int, int], ...], ...]
    mean_iou: float
    matched: float


def fit_anchors(shapes: Shapes, strides: Sequence[int], per_level: int, side: int) -> Anchors:
    """Return anchors for boxes of these shapes.

    The range of scales is shared out to the levels in equal ratios, and each level's anchors are
    the k-means of its own boxes. k-means of all boxes would give nearly all anchors to the most
    frequent size, and rare sizes would hardly be trained. A box of less than `LEAST_STRIDES` goes
    to a finer level; on the finest it counts as one of that size. Levels without boxes, or too
    coarse for any, get larger copies of the anchors before.

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
    least = LEAST_STRIDES * np.array(strides, dtype=float)
    used = max(1, int((least <= longest).sum()))
    edges = np.maximum(np.geomspace(shortest, longest, used + 1)[1:-1], least[1:used])
    share = np.searchsorted(edges, scales, side="right")
    levels: list[Shapes] = []
    for level in range(len(strides)):
        mine = boxes[share == level]
        if len(mine) or not levels:  # If all are alike, the finest levels have none of their own.
            own = _means(_enlarged(mine if len(mine) else boxes, least[level]), per_level)
        else:
            own = levels[-1] * 2
        # The spread of boxes that are alike may lead below a stride.
        levels.append(np.clip(_enlarged(own, strides[level]), 2, side))
    sizes = np.stack(levels).round().astype(int)
    best = overlaps_on_grids(boxes, sizes.astype(float), strides)
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


def overlaps_on_grids(shapes: Shapes, sizes: Shapes, strides: Sequence[int]) -> Shapes:
    """Return the IoU of each box, at a random place, with its best anchor, ``(n,)``.

    Args:
        shapes: Widths and heights of the boxes, ``(n, 2)``.
        sizes: Of the anchors, ``(levels, per_level, 2)``.
        strides: Of the levels; anchors stand in the middle of the cells.
    """
    places = np.random.default_rng(0).uniform(0, 64, (len(shapes), 2))
    best = np.zeros(len(shapes))
    for level, stride in zip(sizes, strides, strict=True):
        cells = places * max(strides) / stride
        distance = np.abs(cells - np.floor(cells) - 0.5) * stride
        for anchor in level:
            shared = np.minimum(np.minimum(shapes, anchor), (shapes + anchor) / 2 - distance)
            common = shared.clip(min=0).prod(axis=1)
            best = np.maximum(best, common / (shapes.prod(axis=1) + anchor.prod() - common))
    return best


def _enlarged(shapes: Shapes, least: float) -> Shapes:
    """Return the shapes with a scale (root of the area) of at least ``least``."""
    larger: Shapes = shapes * np.maximum(1.0, least / np.sqrt(shapes.prod(axis=1, keepdims=True)))
    return larger


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
