"""Read image sizes from the file headers, as a pipeline will load the images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mmcv
from mmdet.datasets.pipelines import LoadImageFromFile, LoadMultiChannelImageFromFiles
from PIL import Image

ORIENTATION = 0x0112
# EXIF orientations that swap width and height.
ON_THEIR_SIDE = (5, 6, 7, 8)
# Values of ``color_type`` for which OpenCV applies the EXIF orientation.
TURNING = ("color", "grayscale")
THREADS = 8

Size = tuple[int, int]


def loader_of(leaf: Any) -> Any:
    """Return mmdet's pipeline step that loads images from files, or None.

    Args:
        leaf: A data set that reads images.
    """
    for step in getattr(getattr(leaf, "pipeline", None), "transforms", []):
        if type(step) in (LoadImageFromFile, LoadMultiChannelImageFromFiles):
            return step
    return None


def has_sizes(leaf: Any) -> bool:
    """Return whether the sizes of a data set's images can be read from files."""
    step = loader_of(leaf)
    return type(step) is LoadImageFromFile and is_on_disk(step)


def is_on_disk(step: Any) -> bool:
    """Return whether a loading step reads plain files."""
    given = dict(step.file_client_args)
    return given.get("backend", "disk") == "disk" and "prefix" not in given


def sizes_of(paths: Sequence[str], step: Any) -> list[Size | None]:
    """Return width and height of images as ``step`` loads them; None if a header cannot be read.

    Args:
        paths: Image files.
        step: Decides whether the EXIF orientation is applied.
    """

    def read(path: str) -> Size | None:
        return head_size(path, turned=step.color_type in TURNING)

    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        warnings.simplefilter("ignore")  # about unusual headers
        return list(pool.map(read, paths))


def head_size(path: str, *, turned: bool) -> Size | None:
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


def loaded_size(path: str, step: Any) -> Size | None:
    """Return width and height of an image by loading it, or None if that fails."""
    try:
        content = mmcv.FileClient(**step.file_client_args).get(path)
        image = mmcv.imfrombytes(content, flag=step.color_type, channel_order=step.channel_order)
        return int(image.shape[1]), int(image.shape[0])
    except Exception:  # a broken image may raise anything; loading it later will name it
        return None
