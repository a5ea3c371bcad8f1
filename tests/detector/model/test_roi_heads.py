"""Which RoI heads count as left in float, next to heads whose names begin in the same way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from dq.detector.model.roi_heads import _float_heads

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
