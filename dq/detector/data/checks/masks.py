"""Refuse a data set without masks where the pipeline loads masks."""

from __future__ import annotations

from typing import Any

from dq.detector.data.leaves import annotation_of, infos_of, set_name


def check_masks(leaf: Any, split: str) -> None:
    """Raise ValueError if the pipeline loads masks and no box of the data set has one.

    mmdet would fail at each image, as if no image could be read.

    Args:
        leaf: A data set that reads images.
        split: Its name in the config, for messages.
    """
    if not _loads_masks(leaf):
        return
    boxes = 0
    for index in range(len(infos_of(leaf) or ())):
        annotation = annotation_of(leaf, index)
        if annotation is None:
            return  # They have another form.
        if any(mask is not None and len(mask) for mask in annotation.get("masks") or ()):
            return
        boxes += len(annotation["bboxes"])
    if boxes:
        raise ValueError(
            f"data.{split}: the pipeline loads masks, but no box of {set_name(leaf)} has one; use"
            " annotations with masks, or a detector without masks and LoadAnnotations without"
            " with_mask"
        )


def _loads_masks(leaf: Any) -> bool:
    transforms = getattr(getattr(leaf, "pipeline", None), "transforms", ())
    return any(
        type(transform).__name__ == "LoadAnnotations" and getattr(transform, "with_mask", False)
        for transform in transforms
    )
