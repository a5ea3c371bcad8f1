"""Look through a data set before it is used: missing files, empty boxes, unknown classes."""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmdet.datasets import CocoDataset, XMLDataset

from dq.detector.config import did_you_mean

log = logging.getLogger(__name__)


def inspect(dataset: Any, split: str) -> None:
    """Check every data set inside ``dataset`` and make each leave out boxes without area.

    Args:
        dataset: Any mmdet data set, wrappers (repeat, concatenate, mosaic) included.
        split: Its name in the config, for messages.

    Raises:
        ValueError: No images, an image file that is missing, or classes that do not fit the
            annotations; the message names the first case and the mend.
    """
    for leaf in leaves(dataset):
        if not len(leaf):
            raise ValueError(
                f"data.{split}: no images in {leaf.ann_file} (with the boxes asked for)"
            )
        _check_files(leaf, split)
        if isinstance(leaf, XMLDataset):
            _check_xml_classes(leaf, split)
        elif isinstance(leaf, CocoDataset):
            _check_coco_classes(leaf, split)
        _leave_out_empty_boxes(leaf, split)
        leaf.pipeline = _NamesBadImages(leaf.pipeline)


class _NamesBadImages:
    """A pipeline whose failure on an image that cannot be decoded names that image."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def __call__(self, results: Any) -> Any:
        path = Path(results.get("img_prefix") or ".", results["img_info"]["filename"])
        try:
            return self.pipeline(results)
        except Exception as error:
            reason = _unreadable(path)
            if reason is None:
                raise
            raise ValueError(
                f"image {path} cannot be read: {reason}; mend it or take it out of the image list"
            ) from error

    def __getattr__(self, name: str) -> Any:
        # mmdet looks at the transforms inside, to update them.
        if name == "pipeline":
            raise AttributeError(name)
        return getattr(self.pipeline, name)


def _unreadable(path: Path) -> str | None:
    """Say why an image file cannot be decoded, None when it can."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return str(error.strerror)
    try:
        image = mmcv.imfrombytes(content)
    except Exception as error:
        return " ".join(str(error).split())[:100]
    return "it is no image" if image is None else None


def leaves(dataset: Any) -> Iterator[Any]:
    """Yield the data sets that read files, inside any wrappers."""
    if hasattr(dataset, "datasets"):
        for child in dataset.datasets:
            yield from leaves(child)
    elif hasattr(dataset, "dataset"):
        yield from leaves(dataset.dataset)
    else:
        yield dataset


def _check_files(leaf: Any, split: str) -> None:
    prefix = Path(leaf.img_prefix or ".")
    names = [info.get("filename") or info["file_name"] for info in leaf.data_infos]
    missing = [name for name in names if not (prefix / name).exists()]
    if missing:
        raise ValueError(
            f"data.{split}: {len(missing)} of {len(names)} images are missing, first"
            f" {prefix / missing[0]}; set img_prefix to the folder that has them"
        )


def _check_xml_classes(leaf: Any, split: str) -> None:
    found: Counter[str] = Counter()
    for info in leaf.data_infos:
        path = Path(leaf.img_prefix, leaf.ann_subdir, f"{info['id']}.xml")
        for element in ET.parse(path).getroot().findall("object"):
            found[str(element.findtext("name"))] += 1
    absent = [name for name in leaf.CLASSES if name not in found]
    unknown = [name for name in found if name not in leaf.CLASSES]
    if unknown and not getattr(leaf, "subset", False):
        name = unknown[0]
        raise ValueError(
            f"data.{split}: {leaf.ann_file} has {found[name]} boxes of class {name!r}, which is not"
            f" in the config's classes{did_you_mean(name, absent) if absent else ''};"
            " add it to classes and num_classes"
        )
    if len(absent) == len(leaf.CLASSES) and found:
        raise ValueError(
            f"data.{split}: none of the classes {leaf.CLASSES} occurs in {leaf.ann_file}"
        )
    if absent:
        log.warning("data.%s: no box of class %s", split, ", ".join(absent))


def _check_coco_classes(leaf: Any, split: str) -> None:
    known = [category["name"] for category in leaf.coco.dataset["categories"]]
    for name in leaf.CLASSES:
        if name not in known:
            raise ValueError(
                f"data.{split}: class {name!r} is not a category of {leaf.ann_file}"
                f"{did_you_mean(name, known)}"
            )


class _WithoutEmptyBoxes:
    """``get_ann_info`` of a data set, less the boxes that have no area."""

    def __init__(self, get_ann_info: Any) -> None:
        self.get_ann_info = get_ann_info

    def __call__(self, index: int) -> Any:
        annotation = dict(self.get_ann_info(index))
        for boxes, labels in (("bboxes", "labels"), ("bboxes_ignore", "labels_ignore")):
            if boxes in annotation and len(annotation[boxes]):
                keep = has_area(annotation[boxes])
                annotation[boxes] = annotation[boxes][keep]
                if labels in annotation:
                    annotation[labels] = annotation[labels][keep]
        return annotation


def has_area(boxes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return for each box ``(N, 4)`` of corners whether it has width and height."""
    kept: np.ndarray[Any, Any] = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return kept


def _leave_out_empty_boxes(leaf: Any, split: str) -> None:
    if not hasattr(leaf, "get_ann_info"):
        return
    empty, images, first = 0, 0, ""
    for index, info in enumerate(leaf.data_infos):
        annotation = leaf.get_ann_info(index)
        boxes = (
            np.concatenate([annotation["bboxes"], annotation.get("bboxes_ignore", [])[:]])
            if len(annotation.get("bboxes_ignore", []))
            else annotation["bboxes"]
        )
        count = int((~has_area(boxes)).sum()) if len(boxes) else 0
        if count:
            empty, images = empty + count, images + 1
            first = first or str(info.get("filename") or info.get("file_name"))
    if empty:
        log.warning(
            "data.%s: %d boxes without area in %d images are left out (first %s)",
            split,
            empty,
            images,
            first,
        )
        # An attribute of the instance hides the method of the class.
        leaf.__dict__["get_ann_info"] = _WithoutEmptyBoxes(leaf.get_ann_info)
