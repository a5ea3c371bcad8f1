"""From mmdet's results to what is kept of them: precision of each class, boxes of some images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.parallel import collate
from mmdet.core.evaluation import eval_map
from torch import nn

from dq.detector.batch import to_device
from dq.detector.evaluate import quiet_metric
from dq.detector.leaves import annotation_of, leaves, located, name_of
from dq.tracking.predictions import KEPT_SCORE, MAX_BOXES, MAX_IMAGES, Box, Picture, Predictions


def class_precision(dataset: Any, results: Sequence[Any]) -> dict[str, float]:
    """Return the average precision of each class at IoU 0.5; nothing for data sets that lack it.

    Args:
        dataset: An mmdet data set in test mode.
        results: Of every image, in order.
    """
    annotations = [found for i in range(len(dataset)) if (found := _truth(dataset, i)) is not None]
    if len(annotations) != len(dataset):
        return {}
    first = next(leaves(dataset))
    kind = "voc07" if getattr(first, "year", None) == 2007 else None
    with quiet_metric():
        _, found = eval_map(
            [_boxes_of(result) for result in results],
            annotations,
            iou_thr=0.5,
            dataset=kind,
            logger="silent",
            # As mmdet's VOCDataset does, so that the mean of the classes is its mAP.
            use_legacy_coordinate=hasattr(first, "year"),
        )
    return {
        name: float(entry["ap"])
        for name, entry in zip(dataset.CLASSES, found, strict=True)
        if entry["num_gts"] and np.ndim(entry["ap"]) == 0
    }


def predictions_of(dataset: Any, results: Sequence[Any]) -> Predictions | None:
    """Return the boxes of the first images; None for data sets whose images have no annotations."""
    pictures = []
    for index, result in enumerate(results[:MAX_IMAGES]):
        truth = _truth(dataset, index)
        if truth is None:
            return None
        path = _path(dataset, index)
        labels = zip(truth["bboxes"].tolist(), truth["labels"].tolist(), strict=True)
        pictures.append(
            Picture(
                name=Path(path).name,
                path=path,
                truth=[[*(round(v, 1) for v in box), int(label)] for box, label in labels],
                found=boxes_of(result),
            )
        )
    return Predictions(classes=list(dataset.CLASSES), pictures=pictures)


def boxes_of(result: Any) -> list[Box]:
    """Return mmdet's result of one image as boxes ``(x1, y1, x2, y2, score, label)``."""
    found: list[Box] = [
        [*(round(v, 1) for v in row[:4]), round(row[4], 4), label]
        for label, rows in enumerate(_boxes_of(result))
        for row in rows.tolist()
        if row[4] >= KEPT_SCORE
    ]
    return sorted(found, key=lambda box: -box[4])[:MAX_BOXES]


@torch.no_grad()
def boxes_of_first(
    detector: nn.Module, dataset: Any, number: int, device: torch.device
) -> dict[str, list[Box]]:
    """Return what a detector finds on the first images, by path; one rank's work."""
    detector.eval()
    found = {}
    for index in range(min(number, len(dataset))):
        inputs = to_device(collate([dataset[index]], samples_per_gpu=1), device)
        result = detector(return_loss=False, rescale=True, **inputs)[0]
        found[_path(dataset, index)] = boxes_of(result)
    return found


def _truth(dataset: Any, index: int) -> Mapping[str, Any] | None:
    place = located(dataset, index)
    return None if place is None else annotation_of(*place)


def _path(dataset: Any, index: int) -> str:
    """Return the file of an image, or what it is called where it has none."""
    place = located(dataset, index)
    return f"number {index}" if place is None else name_of(*place)


def _boxes_of(result: Any) -> Any:
    """Return boxes by class; a detector of masks returns those besides."""
    return result[0] if isinstance(result, tuple) else result
