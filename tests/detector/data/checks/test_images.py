from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dq.detector.data.checks.boxes import has_area
from dq.detector.data.checks.images import inspect
from dq.detector.data.leaves import leaves


class Leaf:
    """A minimal data set for the checks."""

    def __init__(self, folder: Path, boxes: list[list[float]]) -> None:
        self.img_prefix, self.ann_file = str(folder), "list.txt"
        (folder / "a.jpg").write_bytes(b"x")
        self.data_infos = [{"filename": "a.jpg"}]
        self.boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
        self.pipeline: Any = lambda results: results

    def __len__(self) -> int:
        return len(self.data_infos)

    def get_ann_info(self, index: int) -> dict[str, Any]:
        return {
            "bboxes": self.boxes,
            "labels": np.arange(len(self.boxes)),
            "bboxes_ignore": np.array([[5, 5, 5, 9]], dtype=np.float32),
            "labels_ignore": np.array([1]),
        }


class Wrapper:
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset


def test_boxes_without_area_are_dropped_with_their_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leaf = Leaf(tmp_path, [[0, 0, 4, 4], [2, 2, 2, 6], [1, 3, 5, 3], [1, 1, 2, 2]])
    with caplog.at_level(logging.WARNING):
        inspect(Wrapper(Wrapper(leaf)), "train")
    found = leaf.get_ann_info(0)
    assert found["bboxes"].tolist() == [[0, 0, 4, 4], [1, 1, 2, 2]]
    assert found["labels"].tolist() == [0, 3]
    assert found["bboxes_ignore"].shape == (0, 4)
    assert "3 boxes without area in 1 image, left out (first a.jpg)" in caplog.text


def test_valid_annotations_are_not_changed(tmp_path: Path) -> None:
    leaf = Leaf(tmp_path, [[0, 0, 4, 4]])
    leaf.get_ann_info = lambda index: {"bboxes": leaf.boxes, "labels": np.zeros(1)}  # type: ignore[method-assign]
    before = leaf.get_ann_info
    inspect(leaf, "train")
    assert leaf.get_ann_info is before


def test_missing_image_is_named(tmp_path: Path) -> None:
    leaf = Leaf(tmp_path, [[0, 0, 4, 4]])
    leaf.data_infos.append({"filename": "b.jpg"})
    with pytest.raises(ValueError, match=r"1 of 2 images missing, first .*b\.jpg"):
        inspect(leaf, "val")


def test_empty_data_set_is_refused(tmp_path: Path) -> None:
    leaf = Leaf(tmp_path, [[0, 0, 4, 4]])
    leaf.data_infos.clear()
    with pytest.raises(ValueError, match="no images"):
        inspect(leaf, "val")


def test_leaves_are_found_in_any_wrapper(tmp_path: Path) -> None:
    leaf = Leaf(tmp_path, [])
    both = Wrapper(None)
    both.datasets = [Wrapper(leaf), leaf]  # type: ignore[attr-defined]
    assert list(leaves(both)) == [leaf, leaf]


def test_area_needs_width_and_height() -> None:
    boxes = np.array([[0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 1, 0], [3, 3, 2, 4]])
    assert has_area(boxes).tolist() == [True, False, False, False]
