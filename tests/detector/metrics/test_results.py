"""Results of every kind: masks are encoded as in mmdet's tests, boxes are found in all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mmcv.parallel import DataContainer
from pycocotools import mask as run_lengths
from torch import Tensor, nn

from dq.detector.evaluation.box_differences import box_differences
from dq.detector.evaluation.evaluate import detect
from dq.detector.metrics.results import boxes_by_class, boxes_of_any_class, encoded, own_copy
from tests.processes.ranks import run_ranks

BITMAP = np.zeros((6, 8), dtype=bool)
BITMAP[1:4, 2:7] = True
BOXES = [np.array([[2, 1, 7, 4, 0.9]], np.float32), np.zeros((0, 5), np.float32)]
MASKS: list[list[Any]] = [[BITMAP], []]
KINDS: dict[str, Any] = {
    "boxes": BOXES,
    "masks": (BOXES, MASKS),
    "mask scoring": (BOXES, (MASKS, [[0.7], []])),
    "proposals": BOXES[0],
    "panoptic": {"pan_results": np.full((6, 8), 3), "ins_results": (BOXES, MASKS)},
    "panoptic alone": {"pan_results": np.full((6, 8), 3)},
}


def masks_of(result: Any) -> Any:
    if isinstance(result, dict):
        return masks_of(result.get("ins_results"))
    if not isinstance(result, tuple):
        return None
    return result[1][0] if isinstance(result[1], tuple) else result[1]


@pytest.mark.parametrize("kind", KINDS)
def test_masks_become_rle_and_the_rest_does_not_change(kind: str) -> None:
    result = encoded([KINDS[kind]])[0]
    masks = masks_of(result)
    if masks is not None:
        assert np.array_equal(run_lengths.decode(masks[0][0]), BITMAP)
        assert masks[1] == []
    assert boxes_by_class(result) == boxes_by_class(KINDS[kind])
    assert type(result) is type(KINDS[kind])


def test_boxes_are_found_in_every_kind() -> None:
    for kind, result in KINDS.items():
        expected = None if kind in ("proposals", "panoptic alone") else BOXES
        assert boxes_by_class(result) == expected, kind
    assert boxes_of_any_class(KINDS["proposals"])[0] is BOXES[0]
    assert boxes_of_any_class(KINDS["panoptic alone"]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_of_every_kind_can_be_compared(kind: str) -> None:
    found = box_differences([KINDS[kind]], [KINDS[kind]])
    assert found.num_matched == found.num_first == found.num_second
    assert found.num_matched == (0 if kind == "panoptic alone" else 1)


def test_a_metric_cannot_change_what_is_kept() -> None:
    kept = KINDS["panoptic"]
    copy = own_copy(kept)
    copy["pan_results"][0, 0] = 99
    copy["ins_results"][0][0] = None
    assert kept["pan_results"][0, 0] == 3
    assert kept["ins_results"][0][0] is BOXES[0]


class Images:
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.full((1, 2, 2), float(index))
        return {"img": [image], "img_metas": [DataContainer({"index": index}, cpu_only=True)]}


class FindsMasks(nn.Module):
    """Returns as many masks as the number of the image."""

    def forward(self, img: list[Tensor], img_metas: Any, **_: Any) -> list[Any]:
        number = int(img[0][0, 0, 0, 0])
        boxes = [np.full((number, 5), number, np.float32), BOXES[1]]
        return [(boxes, [[BITMAP] * number, []])]


def shapes_of_masks() -> list[list[Any]] | None:
    results = detect(FindsMasks(), Images(), device=torch.device("cpu"), workers=0)
    if results is None:
        return None
    return [[mask["size"] for mask in masks[0]] for _, masks in results]


@pytest.mark.slow
def test_masks_of_all_ranks_come_in_order() -> None:
    expected = [[[6, 8]] * number for number in range(5)]
    assert shapes_of_masks() == expected
    assert run_ranks(shapes_of_masks, 2) == [expected, None]
