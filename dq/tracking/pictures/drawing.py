"""A test image drawn twice side by side: with the boxes of the float detector and of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dq.tracking.pictures.predictions import MIN_SCORE, Box, Picture, predicted_class
from dq.whole_file import drafts

SIDE = 420
INK = "#1d2433"
COLORS = ("#e4572e", "#2274a5", "#1f9d55", "#b3499b", "#c77d00", "#00838f", "#7048b6", "#8d6e63")


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
    factor = SIDE / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    image = image.resize(size)
    head, gap = 26, 8
    sheet = Image.new("RGB", (2 * size[0] + gap, size[1] + head), "white")
    sides = (("float", picture.reference or ()), (bits, picture.found))
    for number, (name, boxes) in enumerate(sides):
        left = number * (size[0] + gap)
        side = image.copy()
        shown = _draw(side, picture.truth, boxes, classes, factor)
        sheet.paste(side, (left, head))
        ImageDraw.Draw(sheet).text(
            (left + 2, 5), f"{name}: {shown} boxes", fill=INK, font=_font(14)
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with drafts(path) as (draft,):
        sheet.save(draft, format="JPEG", quality=88)
    return path


def _draw(
    image: Image.Image,
    truth: Sequence[Box],
    boxes: Sequence[Box],
    classes: Sequence[str],
    factor: float,
) -> int:
    pen = ImageDraw.Draw(image)
    for box in truth:
        if predicted_class(box, boxes) != int(box[4]):
            _dashed(pen, [factor * v for v in box[:4]])
    counted = [b for b in boxes if b[4] >= MIN_SCORE]
    for box in sorted(counted, key=lambda b: b[4]):
        x1, y1, x2, y2 = (factor * v for v in box[:4])
        if x2 <= x1 or y2 <= y1:
            continue
        color = COLORS[int(box[5]) % len(COLORS)]
        pen.rectangle((x1, y1, x2, y2), outline=color, width=2)
        text = f"{classes[int(box[5])]} {box[4]:.2f}"
        area = pen.textbbox((x1, max(0.0, y1 - 13)), text, font=_font(11))
        pen.rectangle((area[0] - 1, area[1] - 1, area[2] + 2, area[3] + 1), fill=color)
        pen.text((x1, max(0.0, y1 - 13)), text, fill="white", font=_font(11))
    return len(counted)


def _dashed(pen: ImageDraw.ImageDraw, box: Sequence[float]) -> None:
    x1, y1, x2, y2 = box
    for start, end in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)),
                       ((x1, y2), (x1, y1))):  # fmt: skip
        length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
        pieces = max(2, int(length // 5))
        for number in range(0, pieces, 2):
            ends = [
                tuple(s + (e - s) * part / pieces for s, e in zip(start, end, strict=True))
                for part in (number, number + 1)
            ]
            pen.line([*ends[0], *ends[1]], fill="black", width=4)
            pen.line([*ends[0], *ends[1]], fill="white", width=2)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
