"""A data set without masks is refused where the pipeline loads masks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mmdet.datasets.pipelines import LoadAnnotations

from dq.detector.data.checks.masks import check_masks

POLYGON = [[0.0, 0.0, 4.0, 0.0, 4.0, 4.0]]


class Leaf:
    """Images with one box each, and with these masks."""

    def __init__(self, masks: list[Any], *, with_mask: bool = True) -> None:
        self.ann_file, self.masks = "boxes.json", masks
        self.data_infos: list[dict[str, Any]] = [{} for _ in masks]
        transforms = [LoadAnnotations(with_bbox=True, with_mask=with_mask)]
        self.pipeline = SimpleNamespace(transforms=transforms)

    def __len__(self) -> int:
        return len(self.masks)

    def get_ann_info(self, index: int) -> dict[str, Any]:
        found: dict[str, Any] = {"bboxes": np.ones((1, 4), np.float32), "labels": np.zeros(1)}
        if self.masks[index] != "no key":
            found["masks"] = [self.masks[index]]
        return found


@pytest.mark.parametrize("masks", [[None], [[], []], ["no key", None]])
def test_no_mask_at_all_is_one_line_with_the_mend(masks: list[Any]) -> None:
    words = r"^data\.val: the pipeline loads masks, but no box of boxes\.json has one; use anno"
    with pytest.raises(ValueError, match=words):
        check_masks(Leaf(masks), "val")
    check_masks(Leaf(masks, with_mask=False), "val")


@pytest.mark.parametrize(
    "masks", [[], [POLYGON], [None, POLYGON], [{"counts": "x", "size": [1, 1]}]]
)
def test_some_masks_are_enough(masks: list[Any]) -> None:
    check_masks(Leaf(masks), "train")


def test_other_data_sets_are_left_alone(tmp_path: Path) -> None:
    leaf: Any = Leaf([None])
    leaf.get_ann_info = lambda index: {"segments": []}
    check_masks(leaf, "train")
    check_masks(object(), "train")
