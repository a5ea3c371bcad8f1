"""From mmdet's results to what is kept of them: precision of each class, boxes of some images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.parallel import collate
from mmdet.core.evaluation import eval_map
from mmdet.datasets import OpenImagesDataset
from PIL import Image
from torch import nn

from dq.detector.config.registry_errors import explain
from dq.detector.data.leaves import annotation_of, files_of, infos_of, leaves, located, name_of
from dq.detector.loading.to_device import to_device
from dq.detector.metrics.mmdet_metrics import metrics_of_mmdet
from dq.detector.metrics.results import boxes_by_class, labelled_boxes
from dq.error_text import with_type
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.quantizers.phase import Phase
from dq.quant.quantizers.restore import in_phase
from dq.tracking.pictures.predictions import (
    KEPT_SCORE,
    MAX_BOXES,
    MAX_IMAGES,
    Box,
    Picture,
    Predictions,
)

log = logging.getLogger(__name__)


def class_precision(dataset: Any, results: Sequence[Any]) -> dict[str, float]:
    """Return the average precision of each class at IoU 0.5; nothing for data sets that lack it.

    A class without a box in the annotations has none. These numbers are additional to the metric,
    so an error here is only one line in the log.

    Args:
        dataset: An mmdet data set in test mode.
        results: Of every image, in order.
    """
    boxes = [boxes_by_class(result) for result in results]
    if any(found is None for found in boxes) or not _can_be_matched(dataset):
        return {}
    try:
        annotations = [truth_of(dataset, index) for index in range(len(dataset))]
        if any(found is None for found in annotations):
            return {}
        return _class_precision(next(leaves(dataset)), boxes, annotations)
    except Exception as error:
        log.warning("no precision of each class: %s", with_type(explain(error), error))
        return {}


def _class_precision(leaf: Any, boxes: list[Any], annotations: list[Any]) -> dict[str, float]:
    kind = "voc07" if getattr(leaf, "year", None) == 2007 else None
    with metrics_of_mmdet():
        _, found = eval_map(
            boxes,
            annotations,
            iou_thr=0.5,
            dataset=kind,
            logger="silent",
            # As mmdet's VOCDataset does, so that the mean of the classes is its mAP.
            use_legacy_coordinate=hasattr(leaf, "year"),
        )
    return {
        name: float(entry["ap"])
        for name, entry in zip(leaf.CLASSES, found, strict=False)
        if entry["num_gts"] and np.ndim(entry["ap"]) == 0
    }


def predictions_of(dataset: Any, results: Sequence[Any]) -> Predictions | None:
    """Return the boxes of the first images; masks are left out.

    Returns:
        None if an image has no annotation, or a result has no boxes with classes (proposals, or a
        segmentation without boxes).
    """
    pictures = []
    for index, result in enumerate(results[:MAX_IMAGES]):
        truth = truth_of(dataset, index)
        if truth is None or boxes_by_class(result) is None:
            return None
        path = path_of(dataset, index)
        corners = corners_in_pixels(dataset, index, truth["bboxes"])
        labels = zip(corners.tolist(), truth["labels"].tolist(), strict=True)
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
        [*(round(v, 1) for v in corners), round(score, 4), label]
        for *corners, score, label in labelled_boxes(result)
        if score >= KEPT_SCORE
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
        found[path_of(dataset, index)] = boxes_of(result)
    return found


def boxes_unrounded(
    detector: nn.Module,
    graph: QuantizedGraph,
    dataset: Any,
    number: int,
    device: torch.device,
) -> dict[str, list[Box]]:
    """Return what a quantized detector finds on the first images with its quantizers off.

    One rank's work.
    """
    with in_phase(graph.quantizers, Phase.OFF):
        return boxes_of_first(detector, dataset, number, device)


def _can_be_matched(dataset: Any) -> bool:
    """Return whether precision can be computed from the annotations as they are.

    It cannot for OpenImages: some boxes are of parent classes or of groups of objects, and their
    coordinates are shares of the image.
    """
    return not any(isinstance(leaf, OpenImagesDataset) for leaf in leaves(dataset))


def truth_of(dataset: Any, index: int) -> Mapping[str, Any] | None:
    """Return the boxes and labels of an image, None if the data set does not provide them."""
    place = located(dataset, index)
    return None if place is None else annotation_of(*place)


def path_of(dataset: Any, index: int) -> str:
    """Return the path of an image's file, or its name if it has none."""
    place = located(dataset, index)
    if place is None:
        return f"number {index}"
    infos = infos_of(place.leaf)
    # OpenImages' challenge has the file one level below.
    inner = None if infos is None else infos[place.at].get("img_info")
    if isinstance(inner, Mapping) and (files := files_of(inner)):
        return str(Path(getattr(place.leaf, "img_prefix", None) or "", files[0]))
    return name_of(*place)


def corners_in_pixels(dataset: Any, index: int, boxes: Any) -> Any:
    """Return boxes in pixels; OpenImages has them in shares of the image."""
    place = located(dataset, index)
    if place is None or not isinstance(place.leaf, OpenImagesDataset):
        return boxes
    with Image.open(path_of(dataset, index)) as image:
        width, height = image.size
    return np.asarray(boxes) * np.array([width, height, width, height], dtype=np.float32)
