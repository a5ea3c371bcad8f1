"""RoI heads are found without a trace, and none hides another that is left in float."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dq.detector.model import roi_heads
from dq.detector.model.roi_heads import _float_heads, find_roi_heads

HEADS = ("mask_head", "mask_head2", "mask_head_2", "bbox_head", "bbox")


def detector() -> nn.Module:
    """A detector with a RoI head of heads, one of them with twelve stages."""
    whole, roi_head = nn.Module(), nn.Module()
    for name in HEADS:
        stages = [nn.ModuleDict({"fc": nn.Linear(2, 2)}) for _ in range(12)]
        roi_head.add_module(name, nn.ModuleList(stages) if name == "bbox_head" else stages[0])
    whole.add_module("roi_head", roi_head)
    whole.add_module("roi_head2", nn.Linear(2, 2))
    return whole


ALL = [f"roi_head.{n}" for n in HEADS if n != "bbox_head"]
ALL += [f"roi_head.bbox_head.{stage}" for stage in range(12)]


@pytest.mark.parametrize("part", ALL)
def test_a_quantized_head_hides_no_other(part: str) -> None:
    graph: Any = SimpleNamespace(parts={part: None})
    assert set(_float_heads(detector(), graph)) == set(ALL) - {part}


def test_all_stages_of_a_head_are_hidden_by_the_head() -> None:
    graph: Any = SimpleNamespace(parts={"roi_head.bbox_head": None})
    assert set(_float_heads(detector(), graph)) == set(ALL[: len(HEADS) - 1])


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
