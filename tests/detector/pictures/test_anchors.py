"""Anchors against boxes: as all anchors of the grids compared with all boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmcv import Config
from mmdet.core import bbox_overlaps
from mmdet.core.anchor import anchor_generator as generators
from mmdet.models import build_head

from dq.detector.pictures.anchors import Anchors, InputBoxes, anchors_of, best_overlaps, fit_of

KINDS = {
    "retina": {"type": "AnchorGenerator", "octave_base_scale": 4, "scales_per_octave": 3,
               "ratios": [0.5, 1.0, 2.0], "strides": [8, 16, 32]},
    "off center": {"type": "AnchorGenerator", "scales": [8], "ratios": [0.5, 1.0],
                   "strides": [(8, 16), (16, 8)], "center_offset": 0.5},
    "ssd": {"type": "SSDAnchorGenerator", "scale_major": False, "input_size": 96,
            "strides": [8, 16, 32], "ratios": [[2], [2, 3], [2]],
            "min_sizes": [10, 17, 27], "max_sizes": [17, 27, 42]},
    "yolo": {"type": "YOLOAnchorGenerator", "strides": [32, 16],
             "base_sizes": [[(30, 60), (50, 20)], [(10, 12), (16, 30)]]},
}  # fmt: skip


def boxes_in(width: int, height: int, number: int) -> np.ndarray:
    random = np.random.default_rng(0)
    corners = random.uniform((-5, -5), (width, height), (number, 2))
    sizes = random.uniform(2, max(width, height), (number, 2))
    return np.concatenate([corners, corners + sizes], axis=1)


def of(generator: generators.AnchorGenerator, border: float | None = None) -> Anchors:
    return Anchors(
        head="head",
        strides=tuple((float(w), float(h)) for w, h in generator.strides),
        base=tuple(each.double().numpy() for each in generator.base_anchors),
        good=0.5,
        least=None,
        border=border,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("border", [None, 0, 7])
@pytest.mark.parametrize("size", [(96, 96), (100, 61)])
def test_the_best_is_that_of_all(kind: str, border: int | None, size: tuple[int, int]) -> None:
    given = dict(KINDS[kind])
    generator = getattr(generators, given.pop("type"))(**given)
    width, height = size
    boxes = boxes_in(width, height, 50)
    sizes = [(-(-height // h), -(-width // w)) for w, h in generator.strides]
    grid = torch.cat(generator.grid_priors(sizes, device="cpu")).double()
    if border is not None:
        # As mmdet's anchor_inside_flags.
        inside = (grid[:, 0] >= -border) & (grid[:, 1] >= -border)
        inside &= (grid[:, 2] < width + border) & (grid[:, 3] < height + border)
        grid = grid[inside]
    every = bbox_overlaps(torch.from_numpy(boxes), grid)
    expected = every.max(dim=1).values.numpy() if len(grid) else np.zeros(len(boxes))
    group = InputBoxes(
        width=width, height=height, boxes=boxes, labels=np.zeros(len(boxes), dtype=np.int64)
    )
    assert best_overlaps(of(generator, border), group) == pytest.approx(expected, abs=1e-6)


def head_of(**more: object) -> torch.nn.Module:
    assigner = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.6, "neg_iou_thr": 0.4,
                "min_pos_iou": 0.25, **more}  # fmt: skip
    head = {
        "type": "RetinaHead", "num_classes": 3, "in_channels": 8, "feat_channels": 8,
        "stacked_convs": 1, "anchor_generator": KINDS["retina"],
        "loss_cls": {"type": "FocalLoss", "use_sigmoid": True},
        "train_cfg": {"assigner": assigner, "allowed_border": -1, "pos_weight": -1},
    }  # fmt: skip
    module = torch.nn.Module()
    module.bbox_head = build_head(Config(head)._cfg_dict)
    return module


def test_limits_are_the_assigner_s() -> None:
    (found,) = anchors_of(head_of())
    assert (found.head, found.good, found.least, found.border) == ("bbox_head", 0.6, 0.25, None)
    (found,) = anchors_of(head_of(match_low_quality=False))
    assert found.least is None


def test_shares_of_boxes() -> None:
    (anchors,) = anchors_of(head_of())
    base = anchors.base[0][0]
    shifted = base + np.array([80, 80, 80, 80])
    tiny = np.array([40.0, 40, 42, 42])
    groups = [
        InputBoxes(width=160, height=160, boxes=np.stack([shifted, tiny]), labels=np.array([0, 1])),
        InputBoxes(width=96, height=96, boxes=np.zeros((0, 4)), labels=np.zeros(0, dtype=np.int64)),
    ]
    fit = fit_of(anchors, groups)
    assert fit.best[0] == pytest.approx(1.0)
    assert fit.best[1] < 0.25
    assert fit.centered[0] == pytest.approx(1.0)
    assert (fit.centered >= fit.best - 1e-9).all()
    assert (fit.without_good, fit.untrained) == (0.5, 0.5)
    assert fit_of(anchors, []).without_good == 0.0
