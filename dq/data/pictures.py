"""Image files: which they are, their size from the header, and whether they can be read."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff")
# Images of other kinds, which most decoders of mmcv do not read.
OTHERS = (
    *(".gif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".svg", ".tga", ".ppm", ".pgm"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".exr"),
)
# mmdet does not train on images with a shorter side.
LEAST_SIDE = 32
ORIENTATION = 0x0112
# Width and height of a TIFF as it is stored.
_TIFF_SIZE = (0x0100, 0x0101)
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
            return size_in(image, turned=turned)
    except Exception:  # a broken header may raise anything
        return None


def size_in(image: Image.Image, *, turned: bool) -> Size:
    """Return the width and height of an opened image, from its header.

    Args:
        image: Its pixels are not read.
        turned: As for `head_size`.
    """
    width, height = image.size
    on_its_side = image.getexif().get(ORIENTATION) in ON_THEIR_SIDE
    if image.format == "TIFF" and on_its_side:
        # Newer versions of Pillow have turned the size already, older ones have not.
        width, height = (int(image.getexif()[tag]) for tag in _TIFF_SIZE)
    return (height, width) if turned and on_its_side else (width, height)


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
    """Return whether mmcv's decoder reads an image that Pillow reads; Pillow knows more formats."""
    import cv2
    import numpy as np

    try:
        with Image.open(path) as image:
            if image.format == "JPEG":
                return True  # Nearly all photographs, which need not be decoded twice.
        content = np.fromfile(path, np.uint8)
        return cv2.imdecode(content, cv2.IMREAD_COLOR) is not None
    except Exception:  # a broken file may raise anything
        return False
