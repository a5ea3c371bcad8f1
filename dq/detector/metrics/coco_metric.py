"""COCO's box metric by pycocotools, for data sets whose annotations are not in COCO's format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.datasets.api_wrappers import COCO, COCOeval

from dq.detector.metrics.mmdet_metrics import load_results
from dq.detector.metrics.results import boxes_by_class

# In the order of pycocotools' summary, with the names of mmdet's CocoDataset.
NAMES = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")


def coco_metrics(dataset: Any, results: Sequence[Any]) -> dict[str, float]:
    """Return COCO's average precisions of boxes, ``bbox_mAP`` over IoU 0.5 to 0.95 first.

    The boxes are those that mmdet trains on. Ignored boxes (VOC's difficult ones) become crowds,
    which count neither for nor against a detector.

    Args:
        dataset: An mmdet data set with ``get_ann_info``, in test mode.
        results: Boxes ``(n, 5)`` by class of every image, in order.

    Returns:
        Values in 0 to 1 by mmdet's names. Sizes without boxes are left out; ``bbox_mAP`` is -1 if
        there are no boxes at all.
    """
    truth = truth_of(dataset)
    evaluation = COCOeval(truth, load_results(truth, found_entries(results)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    values = zip(NAMES, evaluation.stats, strict=False)
    # pycocotools returns -1 if there are no annotated boxes.
    return {f"bbox_{name}": float(value) for name, value in values if value >= 0 or name == "mAP"}


def truth_of(dataset: Any) -> COCO:
    """Return the annotations of a data set in COCO's form; images are numbered from 0.

    Args:
        dataset: An mmdet data set with ``get_ann_info``.
    """
    annotations: list[dict[str, Any]] = []
    for image in range(len(dataset)):
        info = dataset.get_ann_info(image)
        for suffix, crowd in (("", 0), ("_ignore", 1)):
            boxes, labels = info.get(f"bboxes{suffix}", []), info.get(f"labels{suffix}", [])
            for box, label in zip(boxes, labels, strict=False):
                entry = _entry(image, int(label), box)
                annotations.append({**entry, "iscrowd": crowd, "id": len(annotations) + 1})
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": image} for image in range(len(dataset))],
        "categories": [{"id": i, "name": name} for i, name in enumerate(dataset.CLASSES)],
        "annotations": annotations,
    }
    truth.createIndex()
    return truth


def found_entries(results: Sequence[Any]) -> list[dict[str, Any]]:
    """Return boxes ``(n, 5)`` by class of every image, in COCO's form."""
    return [
        {**_entry(image, label, row), "score": float(row[4])}
        for image, result in enumerate(results)
        for label, rows in enumerate(boxes_by_class(result) or [])
        for row in rows
    ]


def _entry(image: int, label: int, box: Any) -> dict[str, Any]:
    left, top, right, bottom = (float(value) for value in box[:4])
    width, height = right - left, bottom - top
    return {
        "image_id": image,
        "category_id": label,
        "bbox": [left, top, width, height],
        "area": width * height,
    }
