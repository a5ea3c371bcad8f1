"""The labelled images of a split, and the samples that a pipeline makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmcv import Config
from numpy.typing import NDArray
from torch import Tensor

from dq.detector.config.registry_errors import explain
from dq.detector.data.checks.images import unreadable
from dq.detector.data.datasets import calibration_dataset, dataset_of
from dq.detector.data.leaves import located, name_of
from dq.detector.data.seeded_samples import generators_kept, seed_generators_
from dq.detector.evaluation.kept_predictions import corners_in_pixels, path_of, truth_of
from dq.detector.pictures.pixels import RGB, denormalized, loaded, reduced

Boxes = NDArray[np.float32]
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """An image with its labels.

    Attributes:
        name: Path of its file, or its number.
        image: Perhaps reduced; None if it cannot be read, or if it is not needed.
        size: Width and height before it was reduced; zeros if it cannot be read.
        boxes: Corners in pixels of this size, ``(n, 4)``.
        labels: ``(n,)``.
        ignored: Boxes that are neither trained nor evaluated, ``(m, 4)``.
        has_labels: Whether the data set has annotations at all.
        error: Why the image cannot be read.
    """

    name: str
    image: RGB | None
    size: tuple[int, int]
    boxes: Boxes
    labels: NDArray[np.int64]
    ignored: Boxes
    has_labels: bool = True
    error: str | None = None


def images_once(config: Config, split: str) -> Any:
    """Return the data set of a split with each image once, in test mode, with the test pipeline.

    Raises:
        ValueError: The section, a file or a folder is missing, or the annotations do not fit.
    """
    if split == "train":
        return calibration_dataset(config)
    return dataset_of(config, split, test_mode=True)


def spread(length: int, number: int) -> list[int]:
    """Return indices spread evenly over a data set, all of them if there are no more."""
    number = min(length, number)
    return [place * length // number for place in range(number)]


def first_indices(dataset: Any) -> dict[str, int]:
    """Return the first index of each image of a data set that may repeat them, by its name."""
    found: dict[str, int] = {}
    for index in range(len(dataset)):
        found.setdefault(image_name(dataset, index), index)
    return found


def image_name(dataset: Any, index: int) -> str:
    """Return a name for an image, the same in every data set that reads its file."""
    place = located(dataset, index)
    return f"number {index}" if place is None else name_of(*place)


def labelled(dataset: Any, index: int) -> Sample:
    """Return an image of `images_once` as it is on the disk, with its labels."""
    boxes, labels, ignored, known = _truth(dataset, index)
    place = located(dataset, index)
    image, error = None, None
    try:
        image = None if place is None else loaded(place)
        if image is None:
            image = seen(dataset, index, seed=0).image
    except Exception as wrong:  # a broken file, or a step of the user's own, may raise anything
        reason = unreadable(Path(path_of(dataset, index)))
        error = reason or f"{type(wrong).__name__}: {explain(wrong)}"
    return Sample(
        name=path_of(dataset, index),
        image=None if image is None else reduced(image),
        size=(0, 0) if image is None else (image.shape[1], image.shape[0]),
        boxes=boxes,
        labels=labels,
        ignored=ignored,
        has_labels=known,
        error=error,
    )


def seen(dataset: Any, index: int, *, seed: int, with_image: bool = True) -> Sample:
    """Return a sample of a data set as the network gets it, with the normalization undone.

    A training pipeline gives boxes. A test pipeline gives none, so the boxes of the annotation are
    scaled and flipped like its first view.

    Args:
        dataset: Of training, or of `images_once`.
        index: The sample.
        seed: Of the random numbers of its pipeline; those of this process are not changed.
        with_image: Whether the pixels are needed.
    """
    with generators_kept():
        seed_generators_(seed, 0, index)
        sample = dataset[index]
    image, meta = _content(sample["img"]), _content(sample.get("img_metas"))
    assert isinstance(image, Tensor)
    meta = meta if isinstance(meta, Mapping) else {}
    if "gt_bboxes" in sample:
        boxes = _array(sample["gt_bboxes"], 4)
        labels = _array(sample.get("gt_labels", ()), 0).astype(np.int64)
        ignored = _array(sample.get("gt_bboxes_ignore", ()), 4)
        labels = labels if len(labels) == len(boxes) else np.zeros(len(boxes), dtype=np.int64)
        known = True
    else:
        boxes, labels, ignored, known = _truth(dataset, index)
        boxes, ignored = (_moved(each, meta) for each in (boxes, ignored))
    height, width = image.shape[1:]
    return Sample(
        # mmdet takes another image where a pipeline returns nothing.
        name=str(meta.get("filename") or path_of(dataset, index)),
        image=reduced(denormalized(image, meta)) if with_image else None,
        size=(width, height),
        boxes=boxes,
        labels=labels,
        ignored=ignored,
        has_labels=known,
    )


def _truth(dataset: Any, index: int) -> tuple[Boxes, NDArray[np.int64], Boxes, bool]:
    found = truth_of(dataset, index)
    if found is None:
        return _array((), 4), np.zeros(0, dtype=np.int64), _array((), 4), False
    boxes = corners_in_pixels(dataset, index, _array(found["bboxes"], 4))
    labels = np.asarray(found.get("labels", np.zeros(len(boxes))), dtype=np.int64)
    ignored = corners_in_pixels(dataset, index, _array(found.get("bboxes_ignore", ()), 4))
    return np.asarray(boxes, dtype=np.float32), labels, ignored, True


def _moved(boxes: Boxes, meta: Mapping[str, Any]) -> Boxes:
    """Return boxes of the file in pixels of the network's input."""
    factors = np.ravel(np.asarray(meta.get("scale_factor", 1.0), dtype=np.float32))
    moved = boxes * (factors if factors.size == 4 else np.resize(factors, 4))
    if meta.get("flip") and meta.get("flip_direction") == "horizontal":
        width = float(meta["img_shape"][1])
        moved = np.stack([width - moved[:, 2], moved[:, 1], width - moved[:, 0], moved[:, 3]], 1)
    return np.asarray(moved, dtype=np.float32)


def _content(value: Any) -> Any:
    """Return what mmcv's containers and the lists of views hold: the first view."""
    while True:
        if isinstance(value, list | tuple) and value:
            value = value[0]
        elif hasattr(value, "cpu_only"):
            value = value.data
        else:
            return value


def _array(value: Any, columns: int) -> Boxes:
    value = value.data if hasattr(value, "cpu_only") else value
    found: Boxes = np.asarray(value, dtype=np.float32)
    return found.reshape(-1, columns) if columns else found.reshape(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a split contains.

    Attributes:
        images: Number of images.
        empty: Number of images without a box; None if there are no annotations.
        boxes: Number of boxes of each class, by label.
        in_images: Number of images with each class, by label.
        sizes: Median width and height of each class's boxes in pixels; None without a box.
        ignored: Number of boxes that are neither trained nor evaluated.
    """

    images: int
    empty: int | None
    boxes: tuple[int, ...]
    in_images: tuple[int, ...]
    sizes: tuple[tuple[float, float] | None, ...]
    ignored: int


def counts(dataset: Any, num_classes: int) -> Counts:
    """Count the boxes of all images of `images_once`."""
    shapes: list[list[Boxes]] = [[] for _ in range(num_classes)]
    in_images = [0] * num_classes
    empty = ignored = 0
    has_labels = False
    for boxes, labels, others, known in _annotations(dataset):
        has_labels |= known
        empty += not len(boxes)
        ignored += len(others)
        for label in np.unique(labels[(labels >= 0) & (labels < num_classes)]).tolist():
            own = boxes[labels == label]
            shapes[label].append(own[:, 2:] - own[:, :2])
            in_images[label] += 1
    joined = [np.concatenate(each) if each else np.zeros((0, 2)) for each in shapes]
    return Counts(
        images=len(dataset),
        empty=empty if has_labels else None,
        boxes=tuple(len(each) for each in joined),
        in_images=tuple(in_images),
        sizes=tuple(_median(each) if len(each) else None for each in joined),
        ignored=ignored,
    )


def _annotations(dataset: Any) -> Iterator[tuple[Boxes, NDArray[np.int64], Boxes, bool]]:
    return (_truth(dataset, index) for index in range(len(dataset)))


def _median(shapes: NDArray[Any]) -> tuple[float, float]:
    width, height = np.median(shapes, axis=0).tolist()
    return float(width), float(height)


def names_of(classes: Sequence[str], labels: Sequence[int]) -> list[str]:
    """Return the names of labels; a label beyond the classes has its number."""
    return [classes[n] if 0 <= n < len(classes) else f"label {n}" for n in labels]
