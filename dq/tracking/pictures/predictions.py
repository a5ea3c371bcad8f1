"""Predictions on some test images: boxes of the run and of its float detector, and the truth."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dq.whole_file import write_whole

FILE_NAME = "predictions.json.gz"
# Smallest score that counts, and smallest overlap that matches.
MIN_SCORE, MIN_OVERLAP = 0.3, 0.5
MAX_IMAGES, MAX_BOXES, KEPT_SCORE = 500, 50, 0.1
MISSED = "missed"

Box = Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One test image.

    Attributes:
        name: File name of the image.
        path: Path of the image.
        truth: Boxes ``(x1, y1, x2, y2, label)`` in pixels.
        found: Boxes ``(x1, y1, x2, y2, score, label)`` of the run, best first.
        reference: Boxes of the float detector; None if they are unknown.
    """

    name: str
    path: str
    truth: Sequence[Box]
    found: Sequence[Box]
    reference: Sequence[Box] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """The predictions of a run on the first test images."""

    classes: Sequence[str]
    pictures: Sequence[Picture]


def write_predictions(folder: Path, predictions: Predictions) -> Path:
    """Write the file whole or not at all and return its path."""
    path = folder / FILE_NAME
    write_whole(path, gzip.compress(json.dumps(asdict(predictions)).encode(), 6))
    return path


def read_predictions(folder: Path) -> Predictions | None:
    """Return a folder's predictions, or None if there are none or they cannot be read."""
    try:
        content = json.loads(gzip.decompress((folder / FILE_NAME).read_bytes()))
        pictures = [Picture(**picture) for picture in content["pictures"]]
        return Predictions(classes=content["classes"], pictures=pictures)
    except (OSError, ValueError, TypeError, KeyError, EOFError, zlib.error):
        return None


def overlap(one: Box, other: Box) -> float:
    """Return the intersection over union of two boxes given by corners, 0 to 1."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return width * height / (sum(areas) - width * height)


def predicted_class(truth: Box, found: Sequence[Box]) -> int | None:
    """Return the class predicted for an object: that of the best box on it, or None.

    A box of the right class wins over a better box of another class.
    """
    on_it = [b for b in found if b[4] >= MIN_SCORE and overlap(truth, b) >= MIN_OVERLAP]
    if not on_it:
        return None
    right = any(int(b[5]) == int(truth[4]) for b in on_it)
    return int(truth[4]) if right else int(max(on_it, key=lambda b: b[4])[5])


def unmatched(boxes: Sequence[Box], others: Sequence[Box]) -> list[int]:
    """Return the indices of the boxes that have no partner of their class among the others.

    Each of the others is the partner of one box at most; the boxes choose in their order. The label
    -1 is that of a proposal, which may be of any class.

    Args:
        boxes: ``(x1, y1, x2, y2, score, label)``, the best first.
        others: Boxes of the same kind, or objects ``(x1, y1, x2, y2, label)``.
    """
    free = list(others)
    alone = []
    for number, box in enumerate(boxes):
        label = int(box[-1])
        same = [other for other in free if label in (-1, int(other[-1])) or int(other[-1]) == -1]
        best = max(same, key=lambda other: overlap(box, other), default=None)
        if best is None or overlap(box, best) < MIN_OVERLAP:
            alone.append(number)
        else:
            free.remove(best)
    return alone


def lost_objects(predictions: Predictions) -> dict[str, dict[str, int]]:
    """Count what the run predicts for the objects that the float detector had right.

    Returns:
        For each true class the number of objects by predicted class, or `MISSED`.
    """
    names = list(predictions.classes)
    table = {name: dict.fromkeys([*names, MISSED], 0) for name in names}
    for picture in predictions.pictures:
        if picture.reference is None:
            continue
        for truth in picture.truth:
            if predicted_class(truth, picture.reference) != int(truth[4]):
                continue
            said = predicted_class(truth, picture.found)
            table[names[int(truth[4])]][MISSED if said is None else names[said]] += 1
    return table


def difference(picture: Picture) -> float:
    """Return how much a run and its float detector differ on an image.

    Each box above the threshold in one that has no match of its class in the other adds its score.
    """
    if picture.reference is None:
        return 0.0
    total = 0.0
    for boxes, others in (
        (picture.reference, picture.found),
        (picture.found, picture.reference),
    ):
        for box in boxes:
            if box[4] < MIN_SCORE:
                continue
            same = [o for o in others if o[5] == box[5] and overlap(box, o) >= MIN_OVERLAP]
            best = max((o[4] for o in same), default=0.0)
            total += max(0.0, box[4] - best) if best < MIN_SCORE else 0.0
    return total


def most_different(predictions: Predictions, number: int) -> list[Picture]:
    """Return the images on which run and float detector differ most, in a stable order."""
    known = [p for p in predictions.pictures if p.reference is not None]
    return sorted(known, key=difference, reverse=True)[:number]


def with_reference(predictions: Predictions, reference: Mapping[str, Sequence[Box]]) -> Predictions:
    """Return the predictions with the float detector's boxes, by image path."""
    pictures = [
        Picture(
            name=p.name,
            path=p.path,
            truth=p.truth,
            found=p.found,
            reference=reference.get(p.path, p.reference),
        )
        for p in predictions.pictures
    ]
    return Predictions(classes=predictions.classes, pictures=pictures)
