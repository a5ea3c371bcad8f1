"""Read image sizes from the file headers, as a pipeline will load the images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mmcv
from mmdet.datasets.pipelines import LoadImageFromFile, LoadMultiChannelImageFromFiles

from dq.data.pictures import Size, head_size

# Values of ``color_type`` for which OpenCV applies the EXIF orientation.
TURNING = ("color", "grayscale")
THREADS = 8


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


def loaded_size(path: str, step: Any) -> Size | None:
    """Return width and height of an image by loading it, or None if that fails."""
    try:
        content = mmcv.FileClient(**step.file_client_args).get(path)
        image = mmcv.imfrombytes(content, flag=step.color_type, channel_order=step.channel_order)
        return int(image.shape[1]), int(image.shape[0])
    except Exception:  # a broken image may raise anything; loading it later will name it
        return None
