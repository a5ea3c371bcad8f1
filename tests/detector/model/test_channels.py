"""Images get the number of channels that the first layer needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dq.detector.model.channels import input_channels
from dq.detector.model.graph import quantize_detector
from dq.quant.recipes.recipe import Recipe
from tests.detector.model.test_graph import detector_of


@pytest.mark.parametrize(
    ("family", "options", "expected"),
    [
        ("retinanet", {}, 3),
        ("retinanet", {"model.backbone.in_channels": 1}, 1),
        ("faster_rcnn", {"model.backbone.in_channels": 6}, 6),
        ("yolox", {}, 3),  # Its first convolution has 12 input channels: four slices of the image.
        ("yolo", {}, 3),
        ("ssd", {}, 3),
        ("swin", {}, 3),
        ("detr", {}, 3),
    ],
)
def test_channels_are_those_of_the_first_layer(
    family: str, options: dict[str, Any], expected: int
) -> None:
    assert input_channels(detector_of(family, **options)) == expected


class Gray(nn.Module):
    """Four slices of the image as in YOLOX, for images with one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.conv = nn.Conv2d(4, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        quarters = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
        out: torch.Tensor = self.conv(torch.cat(quarters, 1))
        return out


def test_asking_changes_nothing() -> None:
    detector = nn.Module()
    detector.backbone = Gray().train()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    assert input_channels(detector) == 1
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    assert all(module.training for module in detector.modules())
    assert not detector.backbone.conv._forward_hooks


@pytest.mark.parametrize("family", ["retinanet", "faster_rcnn"])
def test_detectors_of_other_channels_are_traced(family: str) -> None:
    detector = detector_of(family, **{"model.backbone.in_channels": 5})
    graph = quantize_detector(detector, Recipe())
    assert input_channels(detector) == 5
    with torch.no_grad():
        assert graph(torch.zeros(1, 5, 64, 64)) is not None
