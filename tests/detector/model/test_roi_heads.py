"""Looking for RoI heads leaves nothing in a detector, whatever goes wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dq.detector.model import roi_heads
from dq.detector.model.roi_heads import find_roi_heads


class Detector(nn.Module):
    """Its RoI head runs one head on two boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.roi_head = nn.Module()
        self.roi_head.bbox_head = nn.Linear(4, 2)

    def extract_feat(self, image: Tensor) -> Tensor:
        return image


@pytest.mark.parametrize("fails", [None, "input_channels", "run_roi_heads"])
def test_no_hook_stays(monkeypatch: pytest.MonkeyPatch, fails: str | None) -> None:
    detector = Detector()

    def run(detector: Detector, features: Tensor, images: Tensor) -> None:
        detector.roi_head.bbox_head(torch.ones(3, 4))

    def fail(*given: object) -> None:
        raise ValueError("no layer")

    monkeypatch.setattr(roi_heads, "input_channels", lambda detector: 3)
    monkeypatch.setattr(roi_heads, "run_roi_heads", run)
    if fails is not None:
        monkeypatch.setattr(roi_heads, fails, fail)
    if fails == "input_channels":
        with pytest.raises(ValueError, match="no layer"):
            find_roi_heads(detector)
    else:
        found = find_roi_heads(detector)
        assert {name: len(x[0]) for name, x in found.items()} == (
            {} if fails else {"roi_head.bbox_head": 2}
        )
    assert not any(module._forward_pre_hooks for module in detector.modules())
