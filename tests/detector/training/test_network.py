"""The network of a training has the memory layout that the config says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmcv import Config
from torch import Tensor, nn

from dq.detector.training.network import network_to_train


class Detector(nn.Module):
    """A network of two layers, in mmdet's form."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x).relu())
        return result

    extract_feat = forward


def trained(**settings: Any) -> Detector:
    torch.manual_seed(0)
    detector = Detector()
    network_to_train(Config({"fp16": None, **settings}), detector, None, torch.device("cpu"))
    return detector


@pytest.mark.parametrize("wanted", [False, True])
def test_channels_lie_last_if_the_config_says_so(wanted: bool) -> None:
    detector, plain = trained(channels_last=wanted), trained()
    for weight in (detector.first.weight, detector.second.weight):
        assert weight.is_contiguous(memory_format=torch.channels_last) == wanted
        assert weight.is_leaf
    x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    y = detector(x)
    # A layer gives its weight's layout on to its result, whatever its input's is.
    assert y.is_contiguous(memory_format=torch.channels_last) == wanted
    torch.testing.assert_close(y, plain(x))


def test_other_values_are_refused() -> None:
    with pytest.raises(ValueError, match="channels_last is 'yes'; use True or False"):
        trained(channels_last="yes")
