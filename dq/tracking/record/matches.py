"""What each image adds to COCO's metric: its detections, matched with the annotations."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dq.error_text import error_text
from dq.whole_file import write_whole

log = logging.getLogger(__name__)
FILE_NAME = "matches.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """All detections of an evaluation, with the most confident of each class first.

    Attributes:
        image: Number of the image of each detection, ``(n,)``.
        label: Its class, ``(n,)``.
        score: Its score, ``(n,)``, descending within a class.
        hit: Whether it matches an annotation, at each IoU threshold, ``(n, thresholds)``.
        counted: Whether it counts at all: not if it matches an annotation that is ignored.
        annotations: Number of annotations by image and class, ``(images, classes)``.
        names: The images, ``(images,)``; two evaluations can only be paired if they are equal.
    """

    image: NDArray[np.int32]
    label: NDArray[np.int32]
    score: NDArray[np.float32]
    hit: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    annotations: NDArray[np.int32]
    names: NDArray[np.str_]


def write_matches(folder: Path, matches: Matches) -> None:
    """Write ``matches.npz`` into a stage's folder, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{f.name: getattr(matches, f.name) for f in fields(matches)})
    write_whole(folder / FILE_NAME, buffer.getvalue())


def read_matches(folder: Path) -> Matches | None:
    """Return the content of a folder's ``matches.npz``; None if there is none or it is damaged."""
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            return Matches(**{f.name: content[f.name] for f in fields(Matches)})
    except MemoryError:
        raise
    except Exception as error:  # Each kind of damage raises an error of another class.
        log.warning("%s cannot be read: %s", path, error_text(error))
        return None
