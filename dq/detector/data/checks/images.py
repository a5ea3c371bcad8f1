"""Check a data set before it is used: missing files, useless boxes, unknown classes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmcv
from mmdet.datasets import CustomDataset

from dq.counted import counted
from dq.detector.data.checks.boxes import check_boxes
from dq.detector.data.checks.classes import check_classes
from dq.detector.data.checks.image_size import has_sizes, is_on_disk, loader_of
from dq.detector.data.checks.masks import check_masks
from dq.detector.data.leaves import files_of, infos_of, leaves, set_name
from dq.error_text import error_text

log = logging.getLogger(__name__)

# If a custom class overrides one of these, the places of its images are unknown.
PREPARING = ("pre_pipeline", "prepare_train_img", "prepare_test_img", "__getitem__")


def inspect(dataset: Any, split: str, *, quiet: bool = False) -> None:
    """Check every data set inside ``dataset`` and remove boxes without area.

    Checks that are not possible are logged: images may be in memory, in a database or on a server.

    Args:
        dataset: Any mmdet data set, wrappers (repeat, concatenate, mosaic) included.
        split: Its name in the config, for messages.
        quiet: Log nothing but errors.

    Raises:
        ValueError: No images, a missing image file, or classes or boxes that do not fit; the
            message names the first case and the fix.
    """
    said: dict[str, None] = {}

    def say(line: str) -> None:
        # A data set that occurs twice has the same defects twice.
        if line not in said and not quiet:
            said[line] = None
            log.warning("%s", line)

    for leaf in leaves(dataset):
        if not len(leaf):
            raise ValueError(
                f"data.{split}: no images in {set_name(leaf)} (with the boxes that it needs)"
            )
        has_files = _check_files(leaf, split, say)
        check_classes(leaf, split, say)
        check_masks(leaf, split)
        check_boxes(leaf, split, say, opens=has_files and has_sizes(leaf))
        if has_files:
            leaf.pipeline = _NamingPipeline(leaf.pipeline)


class _NamingPipeline:
    """A pipeline that names the image if it cannot be decoded."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def __call__(self, results: Any) -> Any:
        try:
            return self.pipeline(results)
        except Exception as error:
            files = files_of(results.get("img_info") or {})
            path = Path(results.get("img_prefix") or ".", files[0]) if files else None
            reason = None if path is None else unreadable(path)
            if reason is None:
                raise
            raise ValueError(
                f"image {path} cannot be read: {reason}; repair it or remove it from the image list"
            ) from error

    def __getattr__(self, name: str) -> Any:
        # mmdet accesses the transforms inside, to update them.
        if name == "pipeline":
            raise AttributeError(name)
        return getattr(self.pipeline, name)


def unreadable(path: Path) -> str | None:
    """Return why an image file cannot be decoded, or None."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return str(error.strerror)
    try:
        image = mmcv.imfrombytes(content)
    except Exception as error:
        return error_text(error)[:100]
    return "it is not an image" if image is None else None


def _check_files(leaf: Any, split: str, say: Callable[[str], None]) -> bool:
    """Look for the image files; return whether they are plain files and all exist.

    Raises:
        ValueError: Files are missing.
    """
    transforms = getattr(getattr(leaf, "pipeline", None), "transforms", None)
    step, infos = loader_of(leaf), infos_of(leaf)
    if step is not None and not is_on_disk(step):
        given = dict(step.file_client_args)
        reason = f"they are read through file_client_args {given}"
    elif infos is None:
        reason = "it has no list of them"
    else:
        prefix = Path(getattr(leaf, "img_prefix", None) or ".")
        names = [name for info in infos for name in files_of(info)]
        missing = [name for name in names if not (prefix / name).exists()]
        if names and not missing:
            return True
        if not names:
            reason = "it names none"
        elif _has_own_loading(leaf):
            reason = f"{type(leaf).__name__} prepares samples in its own way"
        elif step is None and transforms is not None:
            reason = "no LoadImageFromFile is in its pipeline"
        else:
            raise ValueError(
                f"data.{split}: {len(missing)} of {counted(len(names), 'image[s]')} missing,"
                f" first {prefix / missing[0]}; set img_prefix to the folder that has them"
            )
    say(f"data.{split}: image files of {set_name(leaf)} are not looked for: {reason}")
    return False


def _has_own_loading(leaf: Any) -> bool:
    """Return whether a class from outside mmdet loads samples in its own way."""
    for kind in type(leaf).__mro__:
        if kind is CustomDataset:
            return False
        if kind.__module__.startswith(("mmdet.", "dq.")):
            continue
        if any(name in vars(kind) for name in PREPARING):
            return True
    return False
