"""A test image drawn twice side by side: with the boxes of the float detector and of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from dq.counted import counted
from dq.tracking.pictures.lettering import written
from dq.tracking.pictures.predictions import MIN_SCORE, Box, Picture, predicted_class
from dq.tracking.pictures.sheet import Mark, Panel, drawn
from dq.whole_file import drafts


def draw_pair(picture: Picture, classes: Sequence[str], path: Path, *, bits: str) -> Path | None:
    """Write the picture and return its path; None if the image cannot be read.

    Objects without a matching box are outlined in white dashes.

    Args:
        picture: With both predictions.
        classes: Class names by label.
        path: Path of the JPEG file to write.
        bits: Title for the run's side.
    """
    try:
        with Image.open(picture.path) as file:
            image = file.convert("RGB")
    except OSError:
        return None
    names = written(classes)
    panels = []
    for name, boxes in (("float", picture.reference or ()), (bits, picture.found)):
        sure = [b for b in boxes if b[4] >= MIN_SCORE]
        missed = [t for t in picture.truth if predicted_class(t, boxes) != int(t[4])]
        marks = [Mark(corners=box[:4], is_dashed=True) for box in missed]
        marks += [found_mark(box, names) for box in sorted(sure, key=lambda b: b[4])]
        panels.append(
            Panel(title=f"{name}: {counted(len(sure), 'box[es]')}", image=image, marks=marks)
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with drafts(path) as (draft,):
        drawn(panels).save(draft, format="JPEG", quality=88)
    return path


def found_mark(box: Box, names: Sequence[str], *, is_strong: bool = False) -> Mark:
    """Return the mark of a box ``(x1, y1, x2, y2, score, label)``: its class and score."""
    label = int(box[5])
    name = names[label] if 0 <= label < len(names) else ""
    return Mark(
        corners=box[:4], label=label, text=f"{name} {box[4]:.2f}".strip(), is_strong=is_strong
    )
