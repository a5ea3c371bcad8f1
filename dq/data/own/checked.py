"""Check every photograph and box of a folder, mend what can be mended, leave out the rest."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from dq.data.formats.labelled import Box, Findings, Labelled, Photo, class_names
from dq.data.pictures import LEAST_SIDE, Size, can_read, can_train, head_size, orientation

# Boxes may stick out of their image by this many pixels without a word: formats count differently.
MARGIN = 1.0
# Relative difference of two aspect ratios below which an image is the same one, scaled.
_SAME_ASPECT = 0.01
THREADS = 8

Corners = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Real:
    """An image file as it is.

    Attributes:
        size: Width and height as it is loaded; None if it cannot be read.
        raw: The same before the EXIF orientation is applied.
        tag: The EXIF orientation.
    """

    size: Size | None
    raw: Size | None
    tag: int


def checked(labelled: Labelled) -> Labelled:
    """Return the content with readable images, their real sizes, and boxes inside them.

    What is left out, clipped or converted is added to its findings. Boxes that were made before the
    EXIF orientation was applied, or before the image was scaled, are converted.
    """
    with warnings.catch_warnings(), _silent_decoders(), ThreadPoolExecutor(THREADS) as pool:
        warnings.simplefilter("ignore")  # about unusual headers
        real = list(pool.map(_real, labelled.photos))
    findings, kept = labelled.findings, []
    for photo, facts in zip(labelled.photos, real, strict=True):
        name = labelled.name_of(photo)
        if facts.size is None:
            findings.add("unreadable image[s], left out", name)
            continue
        if min(facts.size) < LEAST_SIDE:
            findings.add(f"image[s] of less than {LEAST_SIDE} pixels, left out", name)
            continue
        ordered = tuple(_ordered(box, name, findings) for box in photo.boxes)
        fitted = _fitted(replace(photo, boxes=ordered), facts, name, findings)
        if fitted is not None:
            boxes = tuple(_sound(fitted.boxes, facts.size, name, findings))
            kept.append(replace(fitted, boxes=boxes))
    return replace(labelled, photos=tuple(kept), classes=class_names(kept, labelled.classes))


@contextlib.contextmanager
def _silent_decoders() -> Iterator[None]:
    """Let OpenCV write nothing about images that it cannot read in the body."""
    import cv2

    before = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(before)


def _real(photo: Photo) -> _Real:
    path = photo.file
    size = head_size(path, turned=True) if can_read(path) and can_train(path) else None
    return _Real(size=size, raw=head_size(path, turned=False), tag=orientation(path))


def _ordered(box: Box, name: str, findings: Findings) -> Box:
    """Return a box whose first corner is the upper left one."""
    x1, y1, x2, y2 = box.corners
    if (x2 >= x1 and y2 >= y1) or not all(map(math.isfinite, box.corners)):
        return box
    findings.add("box[es] with [its|their] corners exchanged, put right", name)
    return replace(box, corners=(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))


def _fitted(photo: Photo, facts: _Real, name: str, findings: Findings) -> Photo | None:
    """Return a photo with boxes for its real size; None if they fit only another size."""
    said, size = photo.size, facts.size
    assert size is not None
    fitted = replace(photo, size=size)
    if said is None or said == size:
        return fitted
    if said == facts.raw and facts.tag in _TURNS:
        findings.add("image[s] turned by an EXIF tag, [its|their] boxes are turned too", name)
        return replace(fitted, boxes=tuple(_turned(box, said, facts.tag) for box in photo.boxes))
    if math.isclose(said[0] * size[1], said[1] * size[0], rel_tol=_SAME_ASPECT):
        findings.add("image[s] of another scale than annotated, [its|their] boxes are scaled", name)
        scale = size[0] / said[0], size[1] / said[1]
        return replace(fitted, boxes=tuple(_scaled(box, *scale) for box in photo.boxes))
    if all(_fits(box, size) for box in photo.boxes):
        findings.add("image[s] of another size than annotated, but [its|their] boxes fit", name)
        return fitted
    findings.add("image[s] whose boxes are for another size, left out", name)
    return None


def _turned(box: Box, raw: Size, tag: int) -> Box:
    (x1, y1, x2, y2), turn = box.corners, _TURNS[tag]
    xs, ys = zip(turn(x1, y1, *raw), turn(x2, y2, *raw), strict=True)
    return replace(box, corners=(min(xs), min(ys), max(xs), max(ys)))


# Where a point of the stored image (width w, height h) is after the orientation is applied.
_TURNS: Mapping[int, Callable[[float, float, int, int], tuple[float, float]]] = {
    5: lambda x, y, w, h: (y, x),
    6: lambda x, y, w, h: (h - y, x),
    7: lambda x, y, w, h: (h - y, w - x),
    8: lambda x, y, w, h: (y, w - x),
}


def _scaled(box: Box, across: float, down: float) -> Box:
    x1, y1, x2, y2 = box.corners
    return replace(box, corners=(x1 * across, y1 * down, x2 * across, y2 * down))


def _fits(box: Box, size: Size) -> bool:
    _, _, x2, y2 = box.corners
    return x2 <= size[0] + MARGIN and y2 <= size[1] + MARGIN


def _sound(boxes: Iterable[Box], size: Size, name: str, findings: Findings) -> Iterable[Box]:
    """Yield the boxes with an area in an image of this size, clipped to it, once each."""
    seen = set()
    for box in boxes:
        x1, y1, x2, y2 = box.corners
        inside: Corners = (max(x1, 0.0), max(y1, 0.0), min(x2, size[0]), min(y2, size[1]))
        if not all(map(math.isfinite, box.corners)):
            findings.add("box[es] without numbers, left out", name)
        elif x2 <= x1 or y2 <= y1:
            findings.add("box[es] of zero size, left out", name)
        elif inside[2] <= inside[0] or inside[3] <= inside[1]:
            findings.add("box[es] outside [its|their] image, left out", name)
        elif min(inside[2] - inside[0], inside[3] - inside[1]) < 1.0:  # mmdet's limit.
            findings.add("box[es] of less than a pixel, left out", name)
        elif (box.name, inside) in seen:
            findings.add("box[es] that [is|are] there twice, left out", name)
        else:
            seen.add((box.name, inside))
            if max(abs(a - b) for a, b in zip(inside, box.corners, strict=True)) > MARGIN:
                findings.add("box[es] partly outside [its|their] image, clipped", name)
            yield replace(box, corners=inside)
