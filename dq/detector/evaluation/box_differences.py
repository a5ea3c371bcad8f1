"""Compare two detectors' boxes on the same images, matched one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmdet.core import bbox_overlaps
from numpy.typing import NDArray

from dq.detector.metrics.results import boxes_of_any_class

LOWEST_IOU = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxDifferences:
    """The differences between two lists of detections.

    Attributes:
        num_first: Boxes of the first detector.
        num_second: Boxes of the second detector.
        num_matched: Pairs of the same image and class with an IoU of at least `LOWEST_IOU`.
        corner_mean: Mean difference of corner coordinates in pixels, over the pairs.
        corner_max: The largest one.
        score_mean: Mean difference of scores, over the pairs.
        score_max: The largest one.
    """

    num_first: int
    num_second: int
    num_matched: int
    corner_mean: float
    corner_max: float
    score_mean: float
    score_max: float


def box_differences(
    first: Sequence[Any], second: Sequence[Any], *, lowest_score: float = 0.05
) -> BoxDifferences:
    """Match the boxes of two results, best score first, each with the one it overlaps most.

    Only boxes of the same class and image are matched.

    Args:
        first: mmdet's results of each image, of any kind; without boxes there are no differences.
        second: Results of the same images.
        lowest_score: Boxes with a lower score are ignored.
    """
    counts = [0, 0]
    corners: list[float] = []
    scores: list[float] = []
    for one, other in zip(first, second, strict=True):
        for a, b in zip(boxes_of_any_class(one), boxes_of_any_class(other), strict=True):
            a, b = (np.asarray(x)[np.asarray(x)[:, 4] >= lowest_score] for x in (a, b))
            counts[0] += len(a)
            counts[1] += len(b)
            for i, j in _pairs(a, b):
                corners.append(float(np.abs(a[i, :4] - b[j, :4]).max()))
                scores.append(float(abs(a[i, 4] - b[j, 4])))
    return BoxDifferences(
        num_first=counts[0],
        num_second=counts[1],
        num_matched=len(corners),
        corner_mean=float(np.mean(corners)) if corners else 0.0,
        corner_max=max(corners, default=0.0),
        score_mean=float(np.mean(scores)) if scores else 0.0,
        score_max=max(scores, default=0.0),
    )


def _pairs(a: NDArray[np.float32], b: NDArray[np.float32]) -> list[tuple[int, int]]:
    """Return the indices of matching boxes, each used at most once."""
    if not len(a) or not len(b):
        return []
    overlaps = _overlaps(a[:, :4], b[:, :4])
    found = []
    for i in np.argsort(-a[:, 4]):
        j = int(overlaps[i].argmax())
        if overlaps[i, j] >= LOWEST_IOU:
            found.append((int(i), j))
            overlaps[:, j] = -1.0
    return found


def _overlaps(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    import torch

    found: NDArray[np.float32] = bbox_overlaps(
        torch.from_numpy(a.astype(np.float32)), torch.from_numpy(b.astype(np.float32))
    ).numpy()
    return found
