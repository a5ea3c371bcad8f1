"""The kinds of results that mmdet's detectors return for one image, and their boxes.

Boxes by class (a list of arrays ``(n, 5)``); boxes and masks (a tuple); proposals (one array ``(n,
5)``); a panoptic segmentation (a dict, which may also have boxes and masks).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmdet.core import encode_mask_results

INSTANCES = "ins_results"


def encoded(results: Sequence[Any]) -> list[Any]:
    """Return the results of one batch with each mask as COCO's RLE, as mmdet's own tests do.

    Metrics read masks in this form. Bitmaps of all masks would fill the memory.
    """
    return [_encoded(result) for result in results]


def _encoded(result: Any) -> Any:
    if isinstance(result, tuple) and len(result) == 2:
        boxes, masks = result
        return boxes, encode_mask_results(masks)
    if isinstance(result, dict) and INSTANCES in result:
        return {**result, INSTANCES: _encoded(result[INSTANCES])}
    return result


def boxes_by_class(result: Any) -> list[Any] | None:
    """Return an image's boxes, an array ``(n, 5)`` per class; None if there are no boxes by class.

    Proposals have no class, and a panoptic segmentation may have no boxes.
    """
    if isinstance(result, dict):
        return boxes_by_class(result[INSTANCES]) if INSTANCES in result else None
    if isinstance(result, tuple):
        result = result[0]
    return list(result) if isinstance(result, list) else None


def labelled_boxes(result: Any) -> list[list[float]]:
    """Return an image's boxes as ``(x1, y1, x2, y2, score, label)``, by class."""
    return [
        [*row, label]
        for label, rows in enumerate(boxes_by_class(result) or [])
        for row in np.asarray(rows).tolist()
    ]


def boxes_of_any_class(result: Any) -> list[Any]:
    """Return `boxes_by_class`, but proposals as one class, and an empty list instead of None."""
    if isinstance(result, np.ndarray) and result.ndim == 2 and result.shape[1] == 5:
        return [result]
    return boxes_by_class(result) or []


def own_copy(value: Any) -> Any:
    """Return a copy of results that a metric may change: mmdet's write into lists and label maps.

    Boxes and encoded masks are shared, because metrics replace them and do not write into them.
    """
    if isinstance(value, list):
        return [own_copy(item) for item in value]
    if isinstance(value, tuple):
        return tuple(own_copy(item) for item in value)
    if isinstance(value, dict):
        return {key: own_copy(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        return value.copy()
    return value
