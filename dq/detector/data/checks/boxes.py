"""Check the boxes of a data set against the sizes of their images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmdet.datasets import CocoDataset

from dq.counted import counted
from dq.data.pictures import Size, head_size
from dq.detector.data.checks.image_size import (
    TURNING,
    loaded_size,
    loader_of,
    sizes_of,
)
from dq.detector.data.leaves import annotation_of, files_of, infos_of, name_of, set_name
from dq.detector.instance_methods import replace_method

Boxes = np.ndarray[Any, Any]
# Maximum number of files to open, spread over the data set.
MAX_OPENED = 20_000
KINDS = (("bboxes", "labels"), ("bboxes_ignore", "labels_ignore"))


@dataclass(slots=True)
class Count:
    """Boxes of one kind: how many, in how many images, and the first such image."""

    boxes: int = 0
    images: int = 0
    first: str = ""

    def add(self, boxes: int, image: str) -> None:
        """Add the number of boxes of one image, which may be 0."""
        if boxes:
            self.boxes, self.images = self.boxes + boxes, self.images + 1
            self.first = self.first or image

    def __str__(self) -> str:
        return f"in {counted(self.images, 'image[s]')}, left out (first {self.first})"


def has_area(boxes: Boxes) -> Boxes:
    """Return for each box (``(N, 4)``, corners) whether it has width and height."""
    kept: Boxes = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return kept


def inside(boxes: Boxes, size: Size) -> Boxes:
    """Return the boxes clipped to an image of this width and height."""
    return np.clip(boxes[:, :4], 0, [*size, *size])


def mostly_inside(boxes: Boxes, size: Size) -> Boxes:
    """Return for each box whether at least half of it is in an image of this width and height."""
    return _areas(inside(boxes, size)) >= 0.5 * _areas(boxes)


def _areas(boxes: Boxes) -> Boxes:
    sides: Boxes = np.maximum(boxes[:, 2:4] - boxes[:, :2], 0)
    return sides[:, 0] * sides[:, 1]


class WithoutUselessBoxes:
    """``get_ann_info`` of a data set, without the boxes that have no area in their image.

    Args:
        get_ann_info: The data set's own.
        sizes: Width and height of the images with boxes outside, by index.
    """

    def __init__(self, get_ann_info: Any, sizes: Mapping[int, Size]) -> None:
        self.get_ann_info = get_ann_info
        self.sizes = dict(sizes)

    def __call__(self, index: int) -> Any:
        """Return an image's annotation."""
        annotation = dict(self.get_ann_info(index))
        for boxes, labels in KINDS:
            found = annotation.get(boxes)
            if found is None or not len(found):
                continue
            keep = has_area(found)
            if index in self.sizes:
                keep &= has_area(inside(found, self.sizes[index]))
            if keep.all():
                continue
            keys = [labels] if boxes.endswith("_ignore") else _per_box_keys(annotation, len(found))
            for name in {boxes, *keys} & set(annotation):
                annotation[name] = _chosen(annotation[name], keep)
        return annotation


def _per_box_keys(annotation: Mapping[str, Any], number: int) -> list[str]:
    """Return the keys with one entry per box: labels, masks, keypoints."""
    return [
        name
        for name, value in annotation.items()
        if isinstance(value, list | tuple | np.ndarray)
        and len(value) == number
        and not name.endswith("_ignore")
    ]


def _chosen(values: Any, keep: Boxes) -> Any:
    if isinstance(values, np.ndarray):
        return values[keep]
    return type(values)(value for value, kept in zip(values, keep, strict=True) if kept)


def check_boxes(leaf: Any, split: str, say: Callable[[str], None], *, opens: bool) -> None:
    """Remove boxes without area from a data set; refuse boxes made for another image size.

    Args:
        leaf: A data set that reads images.
        split: Its name in the config, for messages.
        say: Called with each line to log.
        opens: Whether its images are plain files with a readable size.

    Raises:
        ValueError: Boxes fit the image size in the annotation, but not the real size of the image.
    """
    infos = infos_of(leaf)
    if infos is None or annotation_of(leaf, 0) is None:
        say(f"data.{split}: boxes of {set_name(leaf)} are not checked: it has no list of them")
        return
    real = _real_sizes(leaf, split, infos, say) if opens else {}
    empty, stray, other = Count(), Count(), Count()
    outside: dict[int, Size] = {}
    for index, info in enumerate(infos):
        annotation = annotation_of(leaf, index)
        if annotation is None:
            continue
        boxes = _all_boxes(annotation)
        name = next(iter(files_of(info)), f"number {index}")
        _check_labels(leaf, split, annotation, name)
        area = has_area(boxes)
        empty.add(int((~area).sum()), name)
        said, size = _annotated_size(info), real.get(index)
        if said and size and said != size:
            size = _refuse_other_size(leaf, split, index, said, size)
            other.add(int(size != said), name)
        size = size or said
        if size:
            lost = area & ~has_area(inside(boxes, size))
            stray.add(int(lost.sum()), name)
            if lost.any():
                outside[index] = size
    tested = getattr(leaf, "test_mode", False)
    if empty.boxes:
        say(f"data.{split}: {counted(empty.boxes, 'box[es]')} without area {empty}")
    if stray.boxes and tested:
        say(
            f"data.{split}: {counted(stray.boxes, 'box[es]')} in"
            f" {counted(stray.images, 'image[s] [lies outside its|lie outside their] image')}"
            f" (first {stray.first}), where nothing can find them"
        )
    elif stray.boxes:
        say(f"data.{split}: {counted(stray.boxes, 'box[es] outside [its|their] image')} {stray}")
    if other.boxes:
        say(
            f"data.{split}: {counted(other.images, 'image[s] [has|have]')} another size than"
            f" {set_name(leaf)} says (first {other.first}); the boxes fit both, but may be made for"
            " the other"
        )
    if empty.boxes or (outside and not tested):
        kept = WithoutUselessBoxes(leaf.get_ann_info, {} if tested else outside)
        replace_method(leaf, "get_ann_info", kept)


def _all_boxes(annotation: Mapping[str, Any]) -> Boxes:
    parts = [annotation.get(name) for name, _ in KINDS]
    known = [np.asarray(part)[:, :4] for part in parts if part is not None and len(part)]
    return np.concatenate(known) if known else np.zeros((0, 4), np.float32)


def _annotated_size(info: Mapping[str, Any]) -> Size | None:
    width, height = info.get("width"), info.get("height")
    if not isinstance(width, int | float) or not isinstance(height, int | float):
        return None
    return (int(width), int(height)) if width > 0 and height > 0 else None


def _real_sizes(
    leaf: Any, split: str, infos: Sequence[Mapping[str, Any]], say: Callable[[str], None]
) -> dict[int, Size]:
    """Return width and height of the images as the pipeline loads them, by index."""
    stride = -(-len(infos) // MAX_OPENED)
    if stride > 1:
        say(f"data.{split}: the size of one in {stride} images is checked, {set_name(leaf)}")
    chosen = range(0, len(infos), max(1, stride))
    sizes = sizes_of([name_of(leaf, index) for index in chosen], loader_of(leaf))
    return {i: size for i, size in zip(chosen, sizes, strict=True) if size is not None}


def _check_labels(leaf: Any, split: str, annotation: Mapping[str, Any], name: str) -> None:
    """Raise ValueError for a label without a class."""
    labels, classes = annotation.get("labels"), getattr(leaf, "CLASSES", None)
    if not isinstance(labels, np.ndarray) or not len(labels) or not classes:
        return
    if labels.min() < 0 or labels.max() >= len(classes):
        worst = int(labels.min() if labels.min() < 0 else labels.max())
        raise ValueError(
            f"data.{split}: image {name} has a box of label {worst} in {set_name(leaf)}; labels of"
            f" {counted(len(classes), 'class[es]')} go from 0 to {len(classes) - 1}"
        )


def _refuse_other_size(leaf: Any, split: str, index: int, said: Size, size: Size) -> Size:
    """Return the real size of an image whose annotation gives another size.

    Raises:
        ValueError: Some of its boxes fit only the annotated size, or mmdet drops them because of
            it. If the boxes fit neither or both, nothing says which size is right.
    """
    boxes = _boxes_of_file(leaf, index)
    fit_said, fit = mostly_inside(boxes, said), mostly_inside(boxes, size)
    lost = has_area(boxes) & fit_said & ~fit
    # Only COCO boxes are checked against the annotated size; in Pascal VOC files it is often wrong.
    unseen = has_area(boxes) & fit & ~fit_said & isinstance(leaf, CocoDataset)
    path, step = name_of(leaf, index), loader_of(leaf)
    if not (lost | unseen).any():
        return size
    loaded = loaded_size(path, step)
    if loaded != size:  # Only OpenCV knows which tags it applies in which kinds of files.
        return loaded or size
    number = f"{int((lost | unseen).sum())} of {counted(len(boxes), 'box[es]')}"
    where = f"data.{split}: {number} of image {path}"
    fix = f"correct the width, height and boxes of this image in {set_name(leaf)}"
    if unseen.any():
        raise ValueError(
            f"{where} lie outside the {said[0]}x{said[1]} that its annotation says, so mmdet leaves"
            f" them out, and it is {size[0]}x{size[1]}; {fix}"
        )
    turned = step.color_type in TURNING
    by_tag = size == said[::-1] and head_size(path, turned=not turned) == said
    how = f"{size[0]}x{size[1]} as it is read"
    if by_tag and turned:
        how += ", rotated by its EXIF tag"
        fix = (
            "rewrite the photo without the tag, or ignore the tag with"
            " color_type='color_ignore_orientation' in LoadImageFromFile"
        )
    elif by_tag:
        how += ", not rotated by its EXIF tag"
        fix = "use color_type='color' in LoadImageFromFile"
    raise ValueError(
        f"{where} lie outside it, which is {how}, and {said[0]}x{said[1]} by its annotation; {fix}"
    )


def _boxes_of_file(leaf: Any, index: int) -> Boxes:
    """Return an image's boxes, including those that mmdet drops because of the annotated size."""
    if isinstance(leaf, CocoDataset) and hasattr(leaf, "coco"):
        ids = leaf.coco.get_ann_ids(img_ids=[leaf.data_infos[index]["id"]])
        found = [a for a in leaf.coco.load_anns(ids) if a["category_id"] in leaf.cat_ids]
        boxes = np.array([a["bbox"] for a in found], np.float32).reshape(-1, 4)
        return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    return _all_boxes(annotation_of(leaf, index) or {})
