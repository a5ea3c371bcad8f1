"""The size of images as a pipeline will load them, read from the heads of their files."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mmcv
from mmdet.datasets.pipelines import LoadImageFromFile, LoadMultiChannelImageFromFiles
from PIL import Image

ORIENTATION = 0x0112
# Of EXIF: images with these lie on their side.
ON_THEIR_SIDE = (5, 6, 7, 8)
# OpenCV turns images unless it is told not to.
TURNING = ("color", "grayscale")
THREADS = 8

Size = tuple[int, int]


def loader_of(leaf: Any) -> Any:
    """Return mmdet's step that loads a data set's images from files, None where there is none.

    Args:
        leaf: A data set that reads images.
    """
    for step in getattr(getattr(leaf, "pipeline", None), "transforms", []):
        if type(step) in (LoadImageFromFile, LoadMultiChannelImageFromFiles):
            return step
    return None


def has_sizes(leaf: Any) -> bool:
    """Say whether the size of a data set's images can be read from files."""
    step = loader_of(leaf)
    return type(step) is LoadImageFromFile and is_on_disk(step)


def is_on_disk(step: Any) -> bool:
    """Say whether a loading step reads plain files."""
    given = dict(step.file_client_args)
    return given.get("backend", "disk") == "disk" and "prefix" not in given


def sizes_of(paths: Sequence[str], step: Any) -> list[Size | None]:
    """Return width and height of images as ``step`` loads them; None where a file has no such head.

    Args:
        paths: Of the files.
        step: Decides whether photos are turned by their EXIF tag.
    """

    def read(path: str) -> Size | None:
        return head_size(path, turned=step.color_type in TURNING)

    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        warnings.simplefilter("ignore")  # of heads that are odd
        return list(pool.map(read, paths))


def head_size(path: str, *, turned: bool) -> Size | None:
    """Return width and height by a file's head, None where it cannot be read.

    Args:
        path: Of the file.
        turned: As it is after its EXIF orientation has been applied.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            tag = image.getexif().get(ORIENTATION) if turned else None
    except Exception:  # of whatever kind a broken head raises
        return None
    return (height, width) if tag in ON_THEIR_SIDE else (width, height)


def loaded_size(path: str, step: Any) -> Size | None:
    """Return width and height of an image by loading it, None where that fails."""
    try:
        content = mmcv.FileClient(**step.file_client_args).get(path)
        image = mmcv.imfrombytes(content, flag=step.color_type, channel_order=step.channel_order)
        return int(image.shape[1]), int(image.shape[0])
    except Exception:  # of whatever kind a broken image raises; loading it will name it
        return None
