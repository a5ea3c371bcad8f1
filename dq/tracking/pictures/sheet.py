"""One or several pictures with boxes side by side, each below a title."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from dq.tracking.pictures.lettering import font

SIDE = 420
INK, GRAY = "#1d2433", "#9aa4b2"
COLORS = ("#e4572e", "#2274a5", "#1f9d55", "#b3499b", "#c77d00", "#00838f", "#7048b6", "#8d6e63")
# Small images are enlarged by this factor at most.
LARGEST = 8.0
_HEAD, _GAP, _LINE = 26, 8, 13


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A box to draw.

    Attributes:
        corners: ``(x1, y1, x2, y2)`` in pixels of the image.
        label: Decides the color; None for gray.
        text: Above the box; empty for none.
        is_dashed: Draw a white dashed outline without a text: an object that was not found.
        is_strong: Draw a thick outline with a light edge: a box that differs.
    """

    corners: Sequence[float]
    label: int | None = None
    text: str = ""
    is_dashed: bool = False
    is_strong: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A picture of a sheet.

    Attributes:
        title: Above the picture.
        image: RGB; None if it cannot be read.
        size: Width and height of the image that the marks refer to; None if it is ``image``.
        marks: Drawn in this order.
        note: Written in place of the picture if there is none.
    """

    title: str
    image: Image.Image | None
    size: tuple[int, int] | None = None
    marks: Sequence[Mark] = ()
    note: str = ""


def drawn(panels: Sequence[Panel], side: int = SIDE) -> Image.Image:
    """Return the panels side by side, each as large as fits into a square.

    Args:
        panels: At least one.
        side: Side of the square, in pixels.
    """
    pictures = [_picture(panel, side) for panel in panels]
    # A title needs some room, also above a narrow picture.
    widths = [max(each.width, side // 2) for each in pictures]
    height = max(each.height for each in pictures)
    sheet = Image.new("RGB", (sum(widths) + _GAP * (len(panels) - 1), height + _HEAD), "white")
    pen, left = ImageDraw.Draw(sheet), 0
    for panel, picture, width in zip(panels, pictures, widths, strict=True):
        sheet.paste(picture, (left, _HEAD))
        pen.text((left + 2, 5), _cut(panel.title, width - 4, 14), fill=INK, font=font(14))
        left += width + _GAP
    return sheet


def color_of(label: int | None) -> str:
    """Return the color of a class."""
    return GRAY if label is None or label < 0 else COLORS[label % len(COLORS)]


def _picture(panel: Panel, side: int) -> Image.Image:
    if panel.image is None or 0 in panel.image.size:
        image = Image.new("RGB", (side, side // 2), "#eef1f5")
        text = _wrapped(panel.note or "no image", side - 24)
        ImageDraw.Draw(image).multiline_text((12, 12), text, fill=INK, font=font(12))
        return image
    width, height = panel.size or panel.image.size
    factor = min(LARGEST, side / max(width, height))
    image = panel.image.convert("RGB").resize(
        (max(1, round(width * factor)), max(1, round(height * factor)))
    )
    pen = ImageDraw.Draw(image)
    # A network that has diverged may give corners that are no numbers.
    marks = [mark for mark in panel.marks if all(map(math.isfinite, mark.corners))]
    for mark in marks:
        corners = _placed(mark, factor, side)
        if mark.is_dashed:
            _dashed(pen, corners)
        else:
            _box(pen, corners, mark)
    # Texts come last, so that no box hides them.
    for mark in marks:
        if mark.text and not mark.is_dashed:
            _text(pen, _placed(mark, factor, side), mark, image.size)
    return image


def _placed(mark: Mark, factor: float, side: int) -> list[float]:
    """Return the corners in the picture; those far outside of it are moved to just outside."""
    return [max(-9.0, min(factor * value, side + 9.0)) for value in mark.corners]


def _box(pen: ImageDraw.ImageDraw, corners: Sequence[float], mark: Mark) -> None:
    x1, y1, x2, y2 = corners
    if not (x2 > x1 and y2 > y1):
        return
    if mark.is_strong:
        pen.rectangle((x1 - 2, y1 - 2, x2 + 2, y2 + 2), outline="white", width=1)
    pen.rectangle((x1, y1, x2, y2), outline=color_of(mark.label), width=4 if mark.is_strong else 2)


def _text(
    pen: ImageDraw.ImageDraw, corners: Sequence[float], mark: Mark, size: tuple[int, int]
) -> None:
    width = pen.textlength(mark.text, font=font(11))
    x = max(0.0, min(corners[0], size[0] - width - 2))
    y = max(0.0, min(corners[1] - _LINE, size[1] - _LINE))
    area = pen.textbbox((x, y), mark.text, font=font(11))
    color = color_of(mark.label)
    pen.rectangle((area[0] - 1, area[1] - 1, area[2] + 2, area[3] + 1), fill=color)
    pen.text((x, y), mark.text, fill="white", font=font(11))


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


def _cut(text: str, width: float, size: int) -> str:
    """Return a text that is no wider than this, cut at its end."""
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _wrapped(text: str, width: float, size: int = 12) -> str:
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font(size).getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(_cut(word, width, size))
    return "\n".join(lines[:8])
