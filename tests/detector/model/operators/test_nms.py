import pytest
import torch

from dq.detector.model.operators.nms import TorchvisionNms, operators_module


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("iou_threshold", [0.3, 0.45, 0.7])
def test_torchvision_suppresses_the_boxes_that_mmcv_suppresses(
    offset: int, iou_threshold: float
) -> None:
    generator = torch.Generator().manual_seed(offset)
    corners = torch.rand(300, 2, generator=generator) * 80
    boxes = torch.cat([corners, corners + 5 + torch.rand(300, 2, generator=generator) * 30], 1)
    scores = torch.rand(300, generator=generator)
    compiled = operators_module().ext_module
    expected = compiled.nms(boxes, scores, iou_threshold=iou_threshold, offset=offset)
    # Without mmcv's operator, the GPU path runs, on the CPU.
    found = TorchvisionNms(None).nms(boxes, scores, iou_threshold, offset)
    assert 0 < len(found) < 300
    assert found.tolist() == expected.tolist()
    both = TorchvisionNms(compiled).nms(boxes, scores, iou_threshold, offset)
    assert both.tolist() == expected.tolist()
