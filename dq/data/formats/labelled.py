"""Photographs with their boxes, as every format is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dq.counted import counted
from dq.data.pictures import Size

# How many names a line about findings shows.
SHOWN = 3
# Kinds of findings that several formats share.
UNREADABLE = "unreadable annotation[s], left out"
NO_IMAGE = "annotation[s] without an image"
MISSING = "listed image[s] that [is|are] missing, left out"
UNLISTED = "image[s] in no list of ImageSets, left out"
SECOND = "second annotation[s] of an image, left out"
NO_CLASS = "box[es] without a class, left out"
NO_BOX = "object[s] without a box, left out"
TWO_SPLITS = "image[s] in two splits, left out of the second"
# Between the names of two files that are the same.
SAME_AS = " = "
# Characters of a name that a line shows, as its end.
_LONGEST = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One labelled object.

    Attributes:
        name: Its class.
        corners: ``(x1, y1, x2, y2)`` in pixels, as the annotation gives them.
        ignored: Neither trained nor evaluated: a crowd in COCO, difficult in Pascal VOC.
    """

    name: str
    corners: tuple[float, float, float, float]
    ignored: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Photo:
    """One image with its boxes.

    Attributes:
        file: The image, which may turn out to be unreadable.
        boxes: May be empty: nothing to see.
        size: Width and height that the annotation is made for; None if it does not say.
        split: ``train``, ``val``, ``trainval`` or ``test``; None if the folder does not say.
        twin: An earlier image with the same bytes, if there is one.
    """

    file: Path
    boxes: tuple[Box, ...]
    size: Size | None = None
    split: str | None = None
    twin: Path | None = None


def has_boxes(photos: Iterable[Photo]) -> bool:
    """Return whether there is a box to train or evaluate on: one that is not ignored."""
    return any(not box.ignored for photo in photos for box in photo.boxes)


def size_of(width: Any, height: Any) -> Size | None:
    """Return a size as an annotation gives it, None if those are no sides of an image."""
    try:
        sides = int(float(width)), int(float(height))
    except (TypeError, ValueError, OverflowError):
        return None
    return sides if min(sides) > 0 else None


class Findings:
    """What is wrong in a folder: by kind, the names of the files."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}

    def add(self, kind: str, name: str) -> None:
        """Add one finding.

        Args:
            kind: What is wrong and what is done about it, in words for `dq.counted.counted`.
            name: The file.
        """
        self.names.setdefault(kind, []).append(name)

    def lines(self) -> list[str]:
        """Return a line for each kind: the count, and the first few different names."""
        return [
            f"{counted(len(names), kind)} ({_few(names)})" for kind, names in self.names.items()
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """The content of a folder.

    Attributes:
        format: Its name, as in `dq.data.formats.registry.FORMATS`.
        folder: The folder.
        photos: In the order of their paths, each once.
        classes: Names in the order of the folder's own list; names without a list follow sorted.
        findings: What was left out while reading.
    """

    format: str
    folder: Path
    photos: tuple[Photo, ...]
    classes: tuple[str, ...]
    findings: Findings

    def name_of(self, photo: Photo) -> str:
        """Return the path of a photo below the folder, or its whole path."""
        root = self.folder
        return str(photo.file.relative_to(root) if photo.file.is_relative_to(root) else photo.file)


def class_names(photos: Sequence[Photo], declared: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the declared names, and after them all others that occur, sorted."""
    found = {box.name for photo in photos for box in photo.boxes}
    return (*dict.fromkeys(declared), *sorted(found - set(declared)))


def _few(names: Sequence[str]) -> str:
    different = list(dict.fromkeys(names))
    more = ", ..." if len(different) > SHOWN else ""
    shown = ", ".join(
        SAME_AS.join(map(_shortened, name.split(SAME_AS))) for name in different[:SHOWN]
    )
    return f"{'first ' if len(names) > 1 else ''}{shown}{more}"


def _shortened(name: str) -> str:
    """Return a name that fits on a line: its end, without characters that move the cursor."""
    plain = "".join(c if c.isprintable() else "?" for c in name)
    return plain if len(plain) <= _LONGEST else f"...{plain[-_LONGEST:]}"
