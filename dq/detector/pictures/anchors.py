"""How well the anchors of a detector's heads fit labelled boxes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmdet.core.anchor import AnchorGenerator
from numpy.typing import NDArray
from torch import nn

from dq.data.own.anchors import overlaps

Floats = NDArray[np.float64]
# For heads whose assigner has no limit of its own.
USUAL_IOU = 0.5
# The later stages of a cascade start from the boxes of the stage before, not from these anchors.
_LATER = re.compile(r"(?:^|\.)stages\.[1-9]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchors:
    """The anchors of one head.

    Attributes:
        head: Its name in the detector.
        strides: Width and height of a cell of each level's grid, in pixels.
        base: The anchors of each level at its first cell, corners, ``(k, 4)`` each.
        good: An anchor with this IoU to a box is trained on it: the assigner's ``pos_iou_thr``.
        least: A box's best anchor is trained on it from this IoU on, even if it is not good. None
            if only good anchors are trained.
        border: Pixels that an anchor may lie outside of the image; None for any number.
    """

    head: str
    strides: tuple[tuple[float, float], ...]
    base: tuple[Floats, ...]
    good: float
    least: float | None
    border: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InputBoxes:
    """Boxes in inputs of one size.

    Attributes:
        width: Of the network's input, in pixels.
        height: Of the network's input, in pixels.
        boxes: Corners, ``(n, 4)``.
        labels: ``(n,)``.
    """

    width: int
    height: int
    boxes: Floats
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How anchors fit boxes.

    Attributes:
        anchors: Of one head.
        best: IoU of each box with its best anchor, ``(n,)``.
        centered: The same if every anchor were at the box's center, ``(n,)``: only shapes count.
        shapes: Width and height of each box in the network's input, ``(n, 2)``.
        labels: Of each box, ``(n,)``.
    """

    anchors: Anchors
    best: Floats
    centered: Floats
    shapes: Floats
    labels: NDArray[np.int64]

    @property
    def without_good(self) -> float:
        """Share of the boxes without a good anchor, 0 to 1."""
        return float((self.best < self.anchors.good).mean()) if len(self.best) else 0.0

    @property
    def untrained(self) -> float:
        """Share of the boxes that no anchor is trained on, 0 to 1."""
        limit = self.anchors.good if self.anchors.least is None else self.anchors.least
        return float((self.best < limit).mean()) if len(self.best) else 0.0


def anchors_of(detector: nn.Module) -> list[Anchors]:
    """Return the anchors of each head that has some; none for an anchor-free detector."""
    found = []
    for name, module in detector.named_modules():
        if _LATER.search(name):
            continue
        for generator in _generators(module):
            assigner = getattr(module, "assigner", None)
            good = getattr(assigner, "pos_iou_thr", None)
            border = (getattr(module, "train_cfg", None) or {}).get("allowed_border", -1)
            found.append(
                Anchors(
                    head=name,
                    strides=tuple((float(w), float(h)) for w, h in generator.strides),
                    base=tuple(each.double().cpu().numpy() for each in generator.base_anchors),
                    good=float(good) if isinstance(good, int | float) else USUAL_IOU,
                    least=None if good is None else _least(assigner),
                    border=None if border < 0 else float(border),
                )
            )
    return found


def _generators(module: nn.Module) -> Iterator[AnchorGenerator]:
    """Yield a head's own generators; for guided anchoring, those that its anchors come from."""
    own = {name: v for name, v in vars(module).items() if isinstance(v, AnchorGenerator)}
    if any(name.startswith("approx") for name in own):
        own = {name: v for name, v in own.items() if not name.startswith("square")}
    yield from dict.fromkeys(own.values())


def _least(assigner: Any) -> float | None:
    """Return the IoU from which on a box's best anchor is trained on it though it is not good."""
    if not getattr(assigner, "match_low_quality", True):
        return None
    least = getattr(assigner, "min_pos_iou", None)
    return float(least) if isinstance(least, int | float) else None


def fit_of(anchors: Anchors, groups: Iterable[InputBoxes]) -> Fit:
    """Return how a head's anchors fit boxes.

    Args:
        anchors: Of the head.
        groups: The boxes, grouped by the size of the network's input.
    """
    groups = list(groups)
    best = [best_overlaps(anchors, group) for group in groups]
    each = [group.boxes[:, 2:] - group.boxes[:, :2] for group in groups]
    shapes = np.concatenate([np.zeros((0, 2)), *each])
    own = np.concatenate([base[:, 2:] - base[:, :2] for base in anchors.base])
    return Fit(
        anchors=anchors,
        best=np.concatenate([np.zeros(0), *best]),
        centered=overlaps(shapes, own).max(axis=1, initial=0.0),
        shapes=shapes,
        labels=np.concatenate([np.zeros(0, dtype=np.int64), *(g.labels for g in groups)]),
    )


def best_overlaps(anchors: Anchors, group: InputBoxes) -> Floats:
    """Return the IoU of each box with the best of all anchors of the grids, ``(n,)``.

    An anchor overlaps a box the more, the nearer their centers are along either axis. So for each
    anchor, only the cell nearest to the box counts.
    """
    best = np.zeros(len(group.boxes))
    size = np.array([group.width, group.height], dtype=np.float64)
    for stride, base in zip(anchors.strides, anchors.base, strict=True):
        step = np.array(stride)
        first, last = _cells(base, step, size, anchors.border)
        is_there = (first <= last).all(axis=1)
        if not len(base[is_there]) or not len(best):
            continue
        base, first, last = base[is_there], first[is_there], last[is_there]
        # Axes: box, anchor, x and y.
        apart = _centers(group.boxes)[:, None] - _centers(base)[None]
        cell = np.clip(np.rint(apart / step), first, last)
        moved = base[None] + np.tile(cell * step, 2)
        best = np.maximum(best, _overlaps(group.boxes[:, None], moved).max(axis=1))
    return best


def _cells(base: Floats, step: Floats, size: Floats, border: float | None) -> tuple[Floats, Floats]:
    """Return the first and the last cell of each anchor, ``(k, 2)``, that are trained."""
    first = np.zeros((len(base), 2))
    last = np.broadcast_to(np.ceil(size / step) - 1, first.shape)
    if border is None:
        return first, last
    # mmdet keeps those with x1 >= -border and x2 < width + border.
    inside = np.ceil((size + border - base[:, 2:]) / step) - 1
    return np.maximum(first, np.ceil((-border - base[:, :2]) / step)), np.minimum(last, inside)


def _centers(boxes: Floats) -> Floats:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _overlaps(boxes: Floats, others: Floats) -> Floats:
    """Return the IoU of boxes that broadcast to each other, ``(..., 4)``."""
    low = np.maximum(boxes[..., :2], others[..., :2])
    high = np.minimum(boxes[..., 2:], others[..., 2:])
    common = (high - low).clip(min=0).prod(axis=-1)
    areas = [(each[..., 2:] - each[..., :2]).prod(axis=-1) for each in (boxes, others)]
    found: Floats = common / np.maximum(areas[0] + areas[1] - common, 1e-6)
    return found


def grouped(
    sizes: Sequence[tuple[int, int]], boxes: Sequence[Any], labels: Sequence[Any]
) -> list[InputBoxes]:
    """Return the boxes of samples, grouped by the size of the network's input.

    Args:
        sizes: Width and height of each sample's input.
        boxes: Corners of each sample's boxes, ``(n, 4)``.
        labels: Of each sample's boxes, ``(n,)``.
    """
    found: dict[tuple[int, int], list[int]] = {}
    for number, size in enumerate(sizes):
        if len(boxes[number]):
            found.setdefault(size, []).append(number)
    return [
        InputBoxes(
            width=size[0],
            height=size[1],
            boxes=np.concatenate([boxes[n] for n in numbers]).astype(np.float64),
            labels=np.concatenate([labels[n] for n in numbers]).astype(np.int64),
        )
        for size, numbers in found.items()
    ]
