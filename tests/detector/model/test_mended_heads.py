"""mmdet's heads on a CPU, with boxes outside the image and without masks."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.dense_heads import solov2_head
from mmdet.models.roi_heads.mask_heads import fcn_mask_head

from dq.detector.model.mended_heads import fix_heads
from tests.detector.model.test_graph import detector_of

META = {"pad_shape": (64, 64, 3)}


def test_points_are_on_the_requested_device() -> None:
    fix_heads()
    head: Any = detector_of("reppoints").bbox_head
    sizes = [(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]
    points, flags = head.get_points(sizes, [META, META], "cpu")
    assert [len(level) for level in points[0]] == [64, 16, 4, 1, 1]
    assert len(points) == len(flags) == 2
    assert all(bool(level.all()) for level in flags[1])
    assert points[0][0] is not points[1][0]


def test_a_mask_outside_its_image_is_empty() -> None:
    fix_heads()
    mask = torch.ones(1, 1, 28, 28)
    for corners in ([-30, -30, -10, -10], [70, 5, 90, 20], [5, -40, 20, -5]):
        boxes = torch.tensor([corners], dtype=torch.float32)
        found, region = fcn_mask_head._do_paste_mask(mask, boxes, 32, 64)
        whole = torch.zeros(1, 32, 64)
        whole[(slice(None), *region)] = found
        assert not whole.any()
    inside = torch.tensor([[4.0, 4.0, 12.0, 12.0]])
    found, region = fcn_mask_head._do_paste_mask(mask, inside, 32, 64)
    assert [(part.start, part.stop) for part in region] == [(3, 13), (3, 13)]
    assert found[0, 3, 3] == 1


def test_zero_masks_are_resized_to_zero_masks() -> None:
    fix_heads()
    resized = solov2_head.F.interpolate(torch.zeros(1, 0, 8, 8), size=(16, 12), mode="bilinear")
    assert resized.shape == (1, 0, 16, 12)
    one = torch.rand(1, 1, 8, 8)
    same = solov2_head.F.interpolate(one, size=(16, 12), mode="bilinear")
    assert torch.equal(same, torch.nn.functional.interpolate(one, size=(16, 12), mode="bilinear"))
    assert solov2_head.F.relu(torch.tensor(-1.0)) == 0
