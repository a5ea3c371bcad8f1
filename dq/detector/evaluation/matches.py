"""Match detections with annotations as COCO does, and keep the result of each image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.datasets.api_wrappers import COCOeval

from dq.detector.data.leaves import located, name_of
from dq.detector.metrics.coco_metric import found_entries, truth_of
from dq.detector.metrics.mmdet_metrics import load_results
from dq.detector.metrics.results import boxes_by_class
from dq.tracking.record.matches import Matches

# Over all sizes of boxes, with COCO's usual limit.
SIZE, MOST_DETECTIONS = "all", 100


def matches_of(dataset: Any, results: Sequence[Any]) -> Matches | None:
    """Return the matches of an evaluation; None if the data set has no boxes to match.

    Args:
        dataset: An mmdet data set with ``get_ann_info``, in test mode.
        results: Of every image, in order.
    """
    if not hasattr(dataset, "get_ann_info") or any(boxes_by_class(r) is None for r in results):
        return None
    truth = truth_of(dataset)
    evaluation = COCOeval(truth, load_results(truth, found_entries(results)), "bbox")
    parameters = evaluation.params
    parameters.areaRng = [parameters.areaRng[parameters.areaRngLbl.index(SIZE)]]
    parameters.areaRngLbl, parameters.maxDets = [SIZE], [MOST_DETECTIONS]
    evaluation.evaluate()
    thresholds = len(parameters.iouThrs)
    labels = {category: place for place, category in enumerate(parameters.catIds)}
    images = {image: place for place, image in enumerate(parameters.imgIds)}
    annotations = np.zeros((len(images), len(labels)), np.int32)
    parts = []
    for entry in evaluation.evalImgs:
        if entry is None:
            continue
        image, label = images[entry["image_id"]], labels[entry["category_id"]]
        annotations[image, label] = int((np.asarray(entry["gtIgnore"]) == 0).sum())
        number = len(entry["dtScores"])
        if number:
            parts.append(
                (
                    np.full(number, image, np.int32),
                    np.full(number, label, np.int32),
                    np.asarray(entry["dtScores"], np.float32),
                    (np.asarray(entry["dtMatches"]) > 0).T,
                    ~np.asarray(entry["dtIgnore"], bool).T,
                )
            )
    empty = (np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
    none = np.zeros((0, thresholds), bool)
    columns = [np.concatenate(c) for c in zip((*empty, none, none), *parts, strict=True)]
    # By class, the most confident first; equal scores in the order of the images, as COCO does.
    order = np.lexsort((-columns[2].astype(np.float64), columns[1]))
    ordered = [column[order] for column in columns]
    names = np.array([_name(dataset, number) for number in range(len(dataset))])
    return Matches(
        image=ordered[0],
        label=ordered[1],
        score=ordered[2],
        hit=ordered[3],
        counted=ordered[4],
        annotations=annotations,
        names=names,
    )


def _name(dataset: Any, number: int) -> str:
    place = located(dataset, number)
    return str(number) if place is None else Path(name_of(*place)).name
