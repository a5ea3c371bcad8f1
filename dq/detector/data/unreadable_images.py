"""Detect, name and count images that cannot be read during training."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dq.detector.data.checks.images import unreadable
from dq.detector.data.leaves import leaves
from dq.error_text import error_text, with_type

log = logging.getLogger(__name__)


class BadImage(NamedTuple):
    """A file of a sample that cannot be read, and why."""

    path: str
    reason: str


class BadImageError(Exception):
    """The files of a sample could not be loaded.

    Args:
        path: The file that could not be read.
        reason: Why.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.image = BadImage(path, reason)

    def __str__(self) -> str:
        return f"{self.image.path} cannot be read: {self.image.reason}"


class _Loading:
    """A transform that reads files, whose errors name the image."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, results: Any) -> Any:
        try:
            return self.transform(results)
        except Exception as error:
            raise BadImageError(*_described(error, _file_of(results))) from error

    def __getattr__(self, name: str) -> Any:
        if name == "transform":
            raise AttributeError(name)
        return getattr(self.transform, name)

    def __repr__(self) -> str:
        return repr(self.transform)


def name_bad_images(dataset: Any) -> None:
    """Make every loading transform inside ``dataset`` raise `BadImageError` for any error.

    Loading transforms are those whose class name begins with ``Load``, as all of mmdet's do.

    Args:
        dataset: Any mmdet data set, wrappers (repeat, concatenate, mosaic) included; changed.
    """
    for leaf in leaves(dataset):
        transforms = getattr(getattr(leaf, "pipeline", None), "transforms", [])
        for place, transform in enumerate(transforms):
            if type(transform).__name__.startswith("Load"):
                transforms[place] = _Loading(transform)


def bad_image_in(error: BaseException, otherwise: str) -> BadImage | None:
    """Return the image that caused an error, None for another cause.

    Besides errors of loading transforms, any OSError counts: annotations are read before the
    pipeline begins.

    Args:
        error: The error of a data set.
        otherwise: Name for the image if the error names no file.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, BadImageError):
            return cause.image
        if isinstance(cause, OSError):
            return _described(cause, otherwise)
        cause = cause.__cause__
    return None


class BadImages:
    """Logs each bad image once, and raises if there are too many.

    Args:
        allowed: Number of different bad images allowed; 0 raises at the first.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.paths: set[str] = set()

    def add(self, images: Iterable[BadImage]) -> None:
        """Count images that were replaced by others.

        Raises:
            ValueError: There are more different bad images than allowed.
        """
        for path, reason in images:
            if path in self.paths:
                continue
            self.paths.add(path)
            if len(self.paths) <= self.allowed:
                log.warning(
                    "image %s cannot be read: %s; others take its place (bad image %d, %d allowed)",
                    *(path, reason, len(self.paths), self.allowed),
                )
                continue
            number = (
                f" (bad image {len(self.paths)}, {self.allowed} allowed)" if self.allowed else ""
            )
            raise ValueError(
                f"image {path} cannot be read: {reason}{number};"
                " repair it or remove it from the image list"
            )


def _file_of(results: Mapping[str, Any]) -> str:
    """Return the path of the image of a sample, before it is loaded."""
    info = results.get("img_info") or {}
    name = info.get("filename") or info.get("file_name") or "of unknown name"
    if isinstance(name, list | tuple):
        # One file per channel.
        name = name[0]
    return os.path.join(results.get("img_prefix") or "", name)


def _described(error: Exception, otherwise: str) -> BadImage:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return BadImage(os.fsdecode(error.filename), error.strerror)
    text = error_text(error)
    # For an image that it cannot decode, OpenCV returns None or raises a long error. A transform
    # that loads annotations may fail in the same way, with an image that can be read.
    suspect = "NoneType" in text or type(error).__module__ == "cv2"
    if suspect and not (os.path.isfile(otherwise) and unreadable(Path(otherwise)) is None):
        return BadImage(otherwise, "it is not an image")
    return BadImage(otherwise, with_type(text, error)[:200])
