"""What mmdet's detectors return for one image, of every kind, and the boxes in it.

Boxes by class (a list of arrays ``(n, 5)``); those and masks (a tuple); proposals (one array
``(n, 5)``); a panoptic segmentation (a dict, which may have boxes and masks besides).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmdet.core import encode_mask_results

INSTANCES = "ins_results"


def encoded(results: Sequence[Any]) -> list[Any]:
    """Return one batch's results with each mask as COCO's run lengths, as mmdet's own tests do.

    Metrics read masks in this form, and a bitmap of each would fill the memory of all ranks.
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
    """Return an image's boxes, an array ``(n, 5)`` a class; None where there are none of classes.

    Proposals have no class, and a panoptic segmentation need not have boxes.
    """
    if isinstance(result, dict):
        return boxes_by_class(result[INSTANCES]) if INSTANCES in result else None
    if isinstance(result, tuple):
        result = result[0]
    return list(result) if isinstance(result, list) else None


def boxes_of_any_class(result: Any) -> list[Any]:
    """Return the same, proposals counting as one class, nothing being an empty list."""
    if isinstance(result, np.ndarray) and result.ndim == 2 and result.shape[1] == 5:
        return [result]
    return boxes_by_class(result) or []


def own_copy(value: Any) -> Any:
    """Return results that a metric may change: mmdet's write into their lists and label maps.

    Boxes and encoded masks are shared, for they are replaced and not written into.
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
