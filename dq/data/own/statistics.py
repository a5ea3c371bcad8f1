"""Numbers about the boxes of a folder: how many, how large, and the table of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dq.data.formats.labelled import Photo
from dq.data.own.splits import Splits
from dq.data.pictures import Size

# Classes in a table.
SHOWN = 20

Shapes = NDArray[np.float64]

# Networks halve their input up to five times.
STEP = 32
SMALLEST, LARGEST = 160, 640
# Nine of ten boxes should be at least this long in the network's input: the root of their area.
FINEST = 14.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How a pipeline brings a photograph to the network's input.

    Attributes:
        size: Width and height of the input.
        keeps_ratio: Whether both sides are scaled alike, and the rest is padded.
    """

    size: Size
    keeps_ratio: bool

    def of(self, photo: Size) -> tuple[float, float]:
        """Return the factors for the width and the height of a photograph."""
        across, down = self.size[0] / photo[0], self.size[1] / photo[1]
        return (min(across, down),) * 2 if self.keeps_ratio else (across, down)


def box_shapes(photos: Sequence[Photo], scaling: Scaling | None = None) -> Shapes:
    """Return width and height of all boxes, ``(n, 2)``, in pixels of the photo or of the input."""
    rows = []
    for photo in photos:
        assert photo.size is not None
        factors = scaling.of(photo.size) if scaling else (1.0, 1.0)
        for box in photo.boxes:
            x1, y1, x2, y2 = box.corners
            rows.append(((x2 - x1) * factors[0], (y2 - y1) * factors[1]))
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def fitted_size(photos: Sequence[Photo]) -> int:
    """Return the side of a square input in which nine of ten boxes can be seen.

    It is a multiple of 32 between 160 and 640, and not larger than most photographs.
    """
    smallest = [
        float(np.sqrt(w * h))
        for photo in photos
        if photo.size
        for w, h in box_shapes([photo]) / np.array(photo.size)
    ]
    tenth = float(np.quantile(smallest, 0.1)) if smallest else 1.0
    longest = float(np.median([max(photo.size) for photo in photos if photo.size]))
    wanted = min(FINEST / max(tenth, 1e-6), longest)
    return int(np.clip(STEP * round(wanted / STEP), SMALLEST, LARGEST))


def checked_size(size: int) -> int:
    """Return a side of the input that a user has given.

    Raises:
        ValueError: It is not a multiple of 32, or too small or large.
    """
    if size % STEP or not 2 * STEP <= size <= 4096:
        near = min(max(STEP * round(size / STEP), 2 * STEP), 4096)
        raise ValueError(f"--size {size} is not a multiple of {STEP} from 64 to 4096; use {near}")
    return size


def table(splits: Splits, classes: Sequence[str], scaling: Scaling) -> list[str]:
    """Return a line for each class: its boxes in each split, and how large they are.

    Of many classes only the most frequent are in it.
    """
    names = list(splits.photos)
    every = [photo for name in names for photo in splits.photos[name]]
    counts = Counter(box.name for photo in every for box in photo.boxes)
    shown = [name for name, _ in counts.most_common(SHOWN)] if len(classes) > SHOWN else classes
    rows = [["class", *names, "width x height", f"at {scaling.size[0]}x{scaling.size[1]}"]]
    for label in (*shown, None):
        mine = [_of_class(splits.photos[name], label) for name in names]
        boxes = [str(sum(len(photo.boxes) for photo in some)) for some in mine]
        all_mine = [photo for some in mine for photo in some]
        title = f"all {len(classes)}" if label is None else label
        rows.append([title, *boxes, _range(all_mine, None), _range(all_mine, scaling)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]


def images_text(photos: Mapping[str, Sequence[Photo]]) -> str:
    """Return the number of images in each split as words."""
    return ", ".join(f"{len(some)} {name}" for name, some in photos.items())


def _of_class(photos: Sequence[Photo], label: str | None) -> list[Photo]:
    """Return the photographs with the boxes of one class alone; None keeps all."""
    if label is None:
        return list(photos)
    return [
        Photo(file=p.file, size=p.size, boxes=tuple(b for b in p.boxes if b.name == label))
        for p in photos
    ]


def _range(photos: Sequence[Photo], scaling: Scaling | None) -> str:
    """Return the sizes of the boxes as text, ``-`` if there are none.

    Without a scaling it is the median width and height in the photo. With one it is the 10th, 50th
    and 90th percentile of the root of the area in the network's input.
    """
    shapes = box_shapes(photos, scaling)
    if not len(shapes):
        return "-"
    if scaling is None:
        width, height = np.median(shapes, axis=0)
        return f"{width:.0f} x {height:.0f}"
    low, middle, high = np.quantile(np.sqrt(shapes.prod(axis=1)), (0.1, 0.5, 0.9))
    return f"{low:.0f} - {middle:.0f} - {high:.0f}"
