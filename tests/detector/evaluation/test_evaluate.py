"""Evaluation on several ranks: every image once, results in order."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from mmcv.parallel import DataContainer
from mmdet.core.evaluation.mean_ap import eval_map
from torch import Tensor, nn

from dq.detector.evaluation.evaluate import evaluate, main_metric, score
from tests.processes.ranks import run_ranks


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
def test_each_image_is_used_once_and_in_order_on_any_number_of_ranks(length: int) -> None:
    alone = run(length)
    assert alone == {"mAP": sum(range(length))}
    assert run_ranks(run, 3, length) == [alone] * 3


def test_main_metric_prefers_coco_boxes() -> None:
    assert main_metric({"mAP": 0.3}) == ("mAP", 0.3)
    assert main_metric({"segm_mAP": 0.1, "bbox_mAP": 0.2}) == ("bbox_mAP", 0.2)


class Matched:
    """A data set with mmdet's VOC metric on one image."""

    def evaluate(self, results: list[Any], logger: Any = None) -> Any:
        truth = {"bboxes": results[0][0][:, :4], "labels": np.zeros(len(results[0][0]), dtype=int)}
        return {"mAP": eval_map(results, [truth], logger=logger)[0]}


def test_the_metric_forks_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    # A forked process may hang forever if its parent has threads.
    def refuse() -> int:
        raise AssertionError("forked")

    monkeypatch.setattr(os, "fork", refuse)
    boxes = np.array([[0, 0, 9, 9, 0.9], [20, 20, 39, 39, 0.8]], dtype=np.float32)
    assert score(Matched(), [[boxes]], {}) == {"mAP": 1.0}


class AsksForShapes(Numbers):
    """Like OpenImages: the metric needs the image shapes, which the pipeline knows."""

    get_metas = load_from_pipeline = True

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.get_meta_from_pipeline(None)
        sample = super().__getitem__(index)
        meta = {"index": index, "ori_shape": (index + 1, 5, 3)}
        return {**sample, "img_metas": [DataContainer(meta, cpu_only=True)]}

    def get_meta_from_pipeline(self, results: Any) -> None:
        raise AssertionError("mmdet would issue a collective for each image")

    def get_img_shape(self, metas: Any) -> None:
        raise AssertionError("mmdet has the shapes of one rank's processes alone")

    def evaluate(self, results: list[Any], logger: Any = None, metric: str = "mAP") -> Any:
        self.test_img_shapes: list[Any] = []
        self.get_img_shape(None)
        heights = [height for height, _ in self.test_img_shapes]
        assert heights == [index + 1 for index in range(self.length)]
        return super().evaluate(results, metric=metric)


def run_with_shapes(workers: int = 0) -> dict[str, float]:
    dataset = AsksForShapes(5)
    settings = {"metric": "mAP"}
    first = evaluate(Echo(), dataset, settings, device=torch.device("cpu"), workers=0)
    device = torch.device("cpu")
    return first | evaluate(Echo(), dataset, settings, device=device, workers=workers)


def test_image_shapes_come_from_all_ranks_if_the_metric_needs_them() -> None:
    assert run_with_shapes(workers=1) == {"mAP": 10.0}
    assert run_ranks(run_with_shapes, 2) == [{"mAP": 10.0}] * 2
