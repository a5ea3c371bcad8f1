"""Fitted anchors: they overlap the boxes, and every level's are possible at its stride."""

from __future__ import annotations

import numpy as np
import pytest

from dq.data.own.anchors import fit_anchors, overlaps, overlaps_on_grids

STRIDES = (8, 16, 32, 64, 128)


def boxes(*centers: tuple[float, float], number: int = 200) -> np.ndarray:
    rng = np.random.default_rng(0)
    factors = np.exp(rng.normal(0, 0.1, (len(centers), number, 2)))
    return (np.array(centers)[:, None] * factors).reshape(-1, 2)


def test_clusters_are_found() -> None:
    shapes = boxes((12, 30), (60, 40), (150, 150), (20, 20))
    found = fit_anchors(shapes, STRIDES, 4, 256)
    assert found.mean_iou > 0.65
    assert found.matched > 0.9
    fixed = np.array([[(s, s), (s, 2 * s), (2 * s, s), (2 * s, 2 * s)] for s in STRIDES], float)
    assert found.mean_iou > overlaps_on_grids(shapes, fixed, STRIDES).mean() + 0.05


@pytest.mark.parametrize("side", [64, 96, 320, 640])
@pytest.mark.parametrize("per_level", [1, 4])
@pytest.mark.parametrize(
    "shapes",
    [
        boxes((5, 4)),
        boxes((30, 30)),
        boxes((400, 90), (90, 400)),
        np.full((4, 2), 96.0),
        np.array([[10.0, 20.0]]),
        np.array([[10.0, 20.0], [10.0, 20.0], [0.4, 600.0]]),
    ],
    ids=["tiny", "alike", "long", "whole", "one", "three"],
)
def test_anchors_are_possible(shapes: np.ndarray, per_level: int, side: int) -> None:
    found = fit_anchors(shapes, STRIDES, per_level, side)
    sizes = np.array(found.sizes)
    assert sizes.shape == (len(STRIDES), per_level, 2)
    assert sizes.min() >= 2
    assert sizes.max() <= side
    scales = np.sqrt(sizes.prod(axis=2))
    for level, stride in enumerate(STRIDES):
        free = (sizes[level] < side).all(axis=1)
        assert (scales[level][free] >= stride * 0.9).all()
    # Boxes that are alike have different anchors all the same.
    crowded = shapes.min() < 16 or shapes.max() >= side
    assert len({tuple(size) for size in sizes[0]}) == per_level or crowded
    assert fit_anchors(shapes[::-1].copy(), STRIDES, per_level, side) == found


def test_overlaps_are_those_of_centered_boxes() -> None:
    found = overlaps(np.array([[10.0, 10.0]]), np.array([[10.0, 10.0], [10.0, 5.0], [20.0, 5.0]]))
    np.testing.assert_allclose(found, [[1.0, 0.5, 50 / 150]])


def test_overlaps_on_grids_are_those_of_the_nearest_anchors() -> None:
    """Compared with all anchors of all cells around a box."""
    shapes, sizes = boxes((12, 30), (60, 40), number=5), np.array([[[16.0, 24.0]], [[50.0, 50.0]]])
    strides = (8, 32)
    places = np.random.default_rng(0).uniform(0, 64, (len(shapes), 2)) * max(strides)
    found = overlaps_on_grids(shapes, sizes, strides)
    for (w, h), (x, y), overlap in zip(shapes, places, found, strict=True):
        best = 0.0
        for ((aw, ah),), stride in zip(sizes, strides, strict=True):
            for cx in stride * (np.arange(-5, 6) + x // stride + 0.5):
                for cy in stride * (np.arange(-5, 6) + y // stride + 0.5):
                    left, right = max(x - w / 2, cx - aw / 2), min(x + w / 2, cx + aw / 2)
                    top, bottom = max(y - h / 2, cy - ah / 2), min(y + h / 2, cy + ah / 2)
                    common = max(0.0, right - left) * max(0.0, bottom - top)
                    best = max(best, common / (w * h + aw * ah - common))
        np.testing.assert_allclose(overlap, best)


@pytest.mark.parametrize("size", [16, 20, 34, 48, 70])
def test_boxes_go_to_levels_that_are_fine_enough(size: int) -> None:
    """Anchors of the right shape on a level that is too coarse match no more than a half."""
    found = fit_anchors(boxes((size, size), (3 * size, 3 * size)), STRIDES, 3, 320)
    assert found.matched > 0.9


def test_many_boxes_are_sampled() -> None:
    many = boxes((12, 30), (60, 40), number=30_000)
    assert fit_anchors(many, STRIDES, 4, 256).mean_iou > 0.65
