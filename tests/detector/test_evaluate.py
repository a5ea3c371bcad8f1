"""Sharded evaluation: every image once, results in order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmcv.parallel import DataContainer
from torch import Tensor, nn

from dq.detector.evaluate import evaluate, main_metric
from tests.ranks import run_ranks


class Numbers:
    """A data set whose images are their own index and whose metric reads the results' order."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.full((1, 2, 2), float(index))
        return {"img": [image], "img_metas": [DataContainer({"index": index}, cpu_only=True)]}

    def evaluate(self, results: list[Any], logger: Any = None, metric: str = "mAP") -> Any:
        assert results == [float(index) for index in range(self.length)]
        return {metric: sum(results), "text": "left out"}


class Echo(nn.Module):
    def forward(self, img: list[Tensor], img_metas: Any, **_: Any) -> list[float]:
        assert [m["index"] for m in img_metas[0]] == [int(img[0][0, 0, 0, 0])]
        return [float(i[0, 0, 0]) for i in img[0]]


def run(length: int) -> dict[str, float]:
    settings = {"interval": 3, "metric": "mAP", "save_best": "mAP"}
    return evaluate(Echo(), Numbers(length), settings, device=torch.device("cpu"), workers=0)


@pytest.mark.parametrize("length", [7, 1])
def test_each_image_is_seen_once_and_in_order_on_any_number_of_ranks(length: int) -> None:
    alone = run(length)
    assert alone == {"mAP": sum(range(length))}
    assert run_ranks(run, 3, length) == [alone] * 3


def test_main_metric_prefers_coco_boxes() -> None:
    assert main_metric({"mAP": 0.3}) == ("mAP", 0.3)
    assert main_metric({"segm_mAP": 0.1, "bbox_mAP": 0.2}) == ("bbox_mAP", 0.2)
