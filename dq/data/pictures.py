"""Image files: which they are, their size from the header, and whether they can be read."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff")
# Images of other kinds, which mmcv's decoders do not read.
OTHERS = (".gif", ".heic", ".heif", ".avif", ".jxl", ".psd", ".dng", ".cr2", ".nef", ".svg")
# mmdet does not train on images with a shorter side.
LEAST_SIDE = 32
ORIENTATION = 0x0112
# EXIF orientations that swap width and height.
ON_THEIR_SIDE = (5, 6, 7, 8)

Size = tuple[int, int]


def orientation(path: str | Path) -> int:
    """Return the EXIF orientation of an image, 1 if it has none or cannot be read."""
    try:
        with Image.open(path) as image:
            return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a broken header may raise anything
        return 1


def head_size(path: str | Path, *, turned: bool) -> Size | None:
    """Return width and height from a file's header, or None if it cannot be read.

    Args:
        path: An image file.
        turned: Return the size after the EXIF orientation is applied.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            tag = image.getexif().get(ORIENTATION) if turned else None
    except Exception:  # a broken header may raise anything
        return None
    return (height, width) if tag in ON_THEIR_SIDE else (width, height)


def can_read(path: Path) -> bool:
    """Return whether the image decodes completely; decoding at low resolution is enough."""
    try:
        with Image.open(path) as image:
            image.draft("L", (1, 1))
            image.load()
    except Exception:  # a broken file may raise anything
        return False
    return True


def can_train(path: Path) -> bool:
    """Return whether mmcv decodes a readable image, whatever its suffix says; Pillow knows more."""
    import cv2

    try:
        with Image.open(path) as image:
            kind = image.format
    except Exception:  # a broken file may raise anything
        return False
    # Nearly all photographs, which need not be decoded twice.
    return kind == "JPEG" or cv2.imread(str(path), cv2.IMREAD_REDUCED_COLOR_8) is not None
