"""Find the innermost data sets of nested ones, and the image for an index."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Place(NamedTuple):
    """An image: the data set that reads it, and its index there."""

    leaf: Any
    at: int


def parts_of(dataset: Any) -> list[Any]:
    """Return the data sets directly inside a wrapper; empty for one that reads images itself."""
    several = getattr(dataset, "datasets", None)
    if several:
        return list(several)
    inner = getattr(dataset, "dataset", None)
    return [] if inner is None else [inner]


def nested(dataset: Any) -> Iterator[Any]:
    """Yield a data set and all inside it, including wrappers, from outside in."""
    yield dataset
    for part in parts_of(dataset):
        yield from nested(part)


def loads_images(step: str) -> bool:
    """Return whether a pipeline step loads an image, by the name of its class as in mmdet."""
    return step.startswith("Load") and "Annotations" not in step and "Proposals" not in step


def leaves(dataset: Any) -> Iterator[Any]:
    """Yield the data sets that read images, inside any wrappers."""
    return (each for each in nested(dataset) if not parts_of(each))


def located(dataset: Any, index: int) -> Place | None:
    """Return the image for an index of a wrapped data set; None for an unknown wrapper."""
    while True:
        if hasattr(dataset, "datasets"):
            ends = getattr(dataset, "cumulative_sizes", None)
            if ends is None:
                return None
            part = bisect.bisect_right(ends, index)
            index -= ends[part - 1] if part else 0
            dataset = dataset.datasets[part]
        elif hasattr(dataset, "dataset"):
            inner = dataset.dataset
            chosen = getattr(dataset, "repeat_indices", getattr(dataset, "indices", None))
            if chosen is not None:
                index = int(chosen[index])
            elif hasattr(dataset, "times"):
                index %= len(inner)
            elif len(dataset) != len(inner):
                return None
            dataset = inner
        else:
            return Place(dataset, index)


def infos_of(leaf: Any) -> list[Mapping[str, Any]] | None:
    """Return the image infos of an mmdet data set, None for another kind."""
    infos = getattr(leaf, "data_infos", None)
    if not isinstance(infos, list | tuple) or len(infos) != len(leaf):
        return None
    if not all(isinstance(info, Mapping) for info in infos):
        return None
    return list(infos)


def files_of(info: Mapping[str, Any]) -> list[str]:
    """Return the names of an image's files: one, one per channel, or none."""
    name = info.get("filename") or info.get("file_name") or ()
    return [str(name)] if isinstance(name, str | Path) else [str(each) for each in name]


def name_of(leaf: Any, index: int) -> str:
    """Return a name for an image in messages: its file, else its index in the data set."""
    infos = getattr(leaf, "data_infos", None)
    try:
        files = files_of(infos[index])  # type: ignore[index]
    except (TypeError, IndexError, KeyError, AttributeError):
        files = []
    prefix = getattr(leaf, "img_prefix", None) or ""
    return str(Path(prefix, files[0])) if files else f"number {index} of {set_name(leaf)}"


def set_name(leaf: Any) -> str:
    """Return a name for a data set in messages: its annotation file, else its class."""
    file = getattr(leaf, "ann_file", None)
    return str(file) if isinstance(file, str | Path) and str(file) else type(leaf).__name__


def annotation_of(leaf: Any, index: int) -> Mapping[str, Any] | None:
    """Return the boxes and labels of an image, None if the data set does not provide them."""
    get = getattr(leaf, "get_ann_info", None)
    if get is None:
        return None
    try:
        found = get(index)
    except (KeyError, AttributeError, TypeError, NotImplementedError):
        return None
    if not isinstance(found, Mapping):
        return None
    boxes = found.get("bboxes")
    if not isinstance(boxes, np.ndarray) or (len(boxes) and boxes.ndim != 2):
        return None
    return found


def classes_of(dataset: Any, split: str) -> tuple[str, ...]:
    """Return the class names of a built data set.

    Raises:
        ValueError: It has none, or its data sets have different classes.
    """
    found: dict[tuple[str, ...], Any] = {}
    for leaf in leaves(dataset):
        names = getattr(leaf, "CLASSES", None)
        found.setdefault(tuple(names or ()), leaf)
    names = tuple(getattr(dataset, "CLASSES", None) or next(iter(found), ()))
    if not names:
        raise ValueError(f"data.{split} has no classes; add classes=('first', 'second', ...)")
    for other, leaf in found.items():
        if other and other != names:
            raise ValueError(
                f"data.{split}: {set_name(leaf)} has the classes {_few(other)} and another set has"
                f" {_few(names)}; a detector has one list, so give all of them the same classes"
            )
    return names


def _few(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''} ({len(names)})"


def images_by_class(dataset: Any) -> dict[int, list[int]] | None:
    """Return the indices of the images with boxes of each class, by label.

    Returns:
        None if the labels of an image are not available.
    """
    found: dict[int, list[int]] = {label: [] for label in range(len(dataset.CLASSES))}
    for index in range(len(dataset)):
        place = located(dataset, index)
        annotation = None if place is None else annotation_of(*place)
        if annotation is None or "labels" not in annotation:
            return None
        for label in sorted({int(label) for label in annotation["labels"]}):
            found[label].append(index)
    return found
