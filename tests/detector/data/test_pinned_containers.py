"""torch's loader pins what mmcv collates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmcv.parallel import DataContainer, collate
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from dq.detector.data.pinned_containers import pinnable
from dq.detector.data.seeded_samples import Sample, collate_samples
from dq.detector.loading.to_device import to_device


def sample(size: int) -> dict[str, Any]:
    return {
        "img": DataContainer(torch.ones(3, size, size), stack=True),
        "gt_bboxes": DataContainer(torch.ones(size, 4)),
        "img_metas": DataContainer({"size": size}, cpu_only=True),
        "scale": torch.ones(2),
    }


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The tensors that were pinned; without a GPU torch cannot do it."""
    found: list[Tensor] = []

    def pin(self: Tensor, device: object = None) -> Tensor:
        found.append(self.clone())
        return found[-1]

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    return found


def test_tensors_are_pinned_and_metadata_stays(pinned: list[Tensor]) -> None:
    plain = collate([sample(4), sample(8)], samples_per_gpu=2)
    batch = pin_memory(pinnable(plain))
    assert len(pinned) == 4, "one batch of images, two lists of boxes, the scales"
    given, expected = (to_device(b, torch.device("cpu")) for b in (batch, plain))
    assert given["img"] is pinned[0]
    assert any(given["gt_bboxes"][1] is one for one in pinned)
    assert given["img_metas"] == expected["img_metas"] == [{"size": 4}, {"size": 8}]
    for name in ("img", "scale"):
        assert torch.equal(given[name], expected[name])
    assert [b.shape for b in given["gt_bboxes"]] == [(4, 4), (8, 4)]
    assert isinstance(batch["img"], DataContainer)


def test_mmcvs_containers_are_passed_over(pinned: list[Tensor]) -> None:
    pin_memory(collate([sample(4)], samples_per_gpu=1))
    assert len(pinned) == 1, "the reason for our own: if torch pins them too, it can go"


@pytest.mark.parametrize("pins", [False, True])
def test_a_loader_asks_for_them_if_it_pins(pins: bool, pinned: list[Tensor]) -> None:
    batch = collate_samples([Sample(sample(4), ())], 1, pins=pins)
    assert (
        bool(pin_memory(batch).content["img"].data[0] is not batch.content["img"].data[0]) == pins
    )
