"""Fonts for drawings, and which texts they can write."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
# A character that no font has: it is drawn as the sign for a missing one.
_NOWHERE = "\uffff"
LONGEST = 22


@functools.cache
def font(size: int) -> Font:
    """Return the font of this size: DejaVu of matplotlib, else that of Pillow."""
    try:
        from matplotlib import get_data_path

        return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
    except (ImportError, OSError):
        return ImageFont.load_default(size)


def written(names: Sequence[str]) -> list[str]:
    """Return class names as they can be drawn: a number for one in a script the font lacks.

    Control characters become spaces, and long names are cut.
    """
    found = []
    for number, name in enumerate(names):
        plain = " ".join("".join(c if c.isprintable() else " " for c in name).split())
        if not plain or not all(_has(character) for character in set(plain)):
            found.append(f"#{number}")
        else:
            found.append(plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 1]}…")
    return found


@functools.cache
def _has(character: str) -> bool:
    """Return whether the font has a character; cached, because texts repeat their characters."""
    return character == " " or _drawn(character) != _drawn(_NOWHERE)


def _drawn(text: str) -> bytes:
    image = Image.new("L", (40, 40))
    try:
        ImageDraw.Draw(image).text((4, 4), text, fill=255, font=font(20))
    except (UnicodeError, OSError):
        return _drawn(_NOWHERE) if text != _NOWHERE else b""
    return image.tobytes()
