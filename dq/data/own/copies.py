"""Find photographs that are there more than once under other names, by their bytes."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Container, Hashable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from dq.data.formats.labelled import SAME_AS, Labelled, Photo, has_boxes

TWICE = "image[s] with the same bytes as [another|others], kept in one split; delete [it|them]"
# A photograph stays in the split with the larger number, so that evaluated splits stay whole.
_RANK = {"val": 1, "test": 2}

T = TypeVar("T")


def without_copies(labelled: Labelled) -> Labelled:
    """Return the content without photographs that are in two splits under different names.

    A detector that has seen a photograph in its training finds the objects of its copy better than
    those of a new one, and the mAP is too high. So the copy of a photograph of val or test is left
    out of train, and that of one of test also out of val. Copies inside a split, and in a folder
    without splits, stay: they get a `Photo.twin`, which keeps them on one side later. All are added
    to the findings.
    """
    used = {
        split
        for split in _RANK
        if has_boxes(photo for photo in labelled.photos if photo.split == split)
    }
    dropped, twins = set(), {}

    def name(photo: Photo, other: Photo) -> str:
        return f"{labelled.name_of(photo)}{SAME_AS}{labelled.name_of(other)}"

    for group in identical(labelled.photos):
        most = max(_rank(photo, used) for photo in group)
        staying = [photo for photo in group if _rank(photo, used) == most]
        kept = staying[0]
        for photo in group:
            if _rank(photo, used) < most:
                dropped.add(photo.file)
                split = "val" if _rank(photo, used) else "train"
                kind = f"image[s] of {split} with the same bytes as [one|some] of {kept.split}"
                labelled.findings.add(f"{kind}, left out; delete [it|them]", name(photo, kept))
        for photo in staying[1:]:
            twins[photo.file] = kept.file
            labelled.findings.add(TWICE, name(photo, kept))
    photos = [
        replace(photo, twin=twins.get(photo.file))
        for photo in labelled.photos
        if photo.file not in dropped
    ]
    return replace(labelled, photos=tuple(photos))


def identical(photos: Iterable[Photo]) -> list[list[Photo]]:
    """Return the groups of two and more photographs with the same bytes, by their paths.

    Only files of the same size are read.
    """
    ordered = sorted(photos, key=lambda photo: photo.file)
    return [
        same
        for some in _groups(ordered, lambda photo: _of_file(photo, _size))
        for same in _groups(some, lambda photo: _of_file(photo, _digest))
    ]


def _groups(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Return the groups of at least two items with the same key, in the order of the items."""
    found: dict[Hashable, list[T]] = defaultdict(list)
    for item in items:
        found[key(item)].append(item)
    return [group for group in found.values() if len(group) > 1]


def _of_file(photo: Photo, read: Callable[[Path], Hashable]) -> Hashable:
    """Return what is read from the file; its path, which is no other's, if it has been removed."""
    try:
        return read(photo.file)
    except FileNotFoundError:
        return photo.file


def _size(path: Path) -> int:
    return path.stat().st_size


def _digest(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").digest()


def _rank(photo: Photo, used: Container[str]) -> int:
    return _RANK[photo.split] if photo.split and photo.split in used else 0
