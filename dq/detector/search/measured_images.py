"""Choose the images on which a search measures: ``data.val``, or a part of the training set.

The images of ``data.test`` are never used: a recipe that was chosen on them would look better there
than it is.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmcv import Config
from mmdet.datasets import CocoDataset, ConcatDataset

from dq.counted import counted
from dq.detector.config.nested_sections import innermost
from dq.detector.data.data_section import has_section, section_of
from dq.detector.data.datasets import calibration_dataset, dataset_of, interleaved
from dq.detector.data.evaluated_sets import evaluated
from dq.detector.data.leaves import infos_of, leaves, set_name

log = logging.getLogger(__name__)

# Largest number of training images that are used instead of a validation set.
SPLIT_IMAGES = 500
# Settings that decide which images a data set has: paths below its ``data_root``, and names.
_PATHS = ("ann_file", "img_prefix")
_FOLDERS = ("ann_subdir", "img_subdir")


def measured_images(config: Config, *, calibrated_on: int, seed: int) -> Any:
    """Return the data set on which a search measures, in test mode.

    Args:
        config: Result of `dq.detector.config.read.finish`.
        calibrated_on: Number of training images for calibration. A part of the training set begins
            after them.
        seed: Of the calibration, which decides their order.

    Raises:
        ValueError: There is no ``data.val`` of its own, and the training set cannot be divided.
    """
    if has_section(config, "val") and not _is_test_set(config):
        return dataset_of(config, "val", test_mode=True)
    why = "is data.test" if has_section(config, "val") else "is missing"
    dataset = calibration_dataset(config)
    order = interleaved(dataset, seed)
    # A small training set is divided in two; calibration may then see some of these images.
    begin = min(calibrated_on, len(order) // 2)
    chosen = sorted(order[begin : begin + SPLIT_IMAGES])
    if not chosen:
        raise ValueError(
            f"data.val {why}, and data.train has {counted(len(order), 'image[s]')}, too few to"
            " measure on; give a data.val of its own"
        )
    log.warning(
        "data.val %s: the search measures on %s of data.train; a data.val of its own would"
        " be better, because the detector was trained on these",
        why,
        counted(len(chosen), "image[s]"),
    )
    return _part(dataset, chosen)


def _is_test_set(config: Config) -> bool:
    if not has_section(config, "test"):
        return False
    val, test = (_images_of(section_of(config, split)) for split in ("val", "test"))
    return any(part in test for part in val)


def _images_of(section: Mapping[str, Any]) -> list[list[str]]:
    return [
        [_file(part.get("data_root"), part.get(key)) for key in _PATHS]
        + [os.path.normpath(str(part.get(key) or "")) for key in _FOLDERS]
        for part in innermost(section)
    ]


def _file(root: Any, name: Any) -> str:
    """Return the same text for all spellings of a file: relative, absolute, or through a link."""
    return os.path.realpath(os.path.join(str(root or ""), str(name or "")))


def _part(dataset: Any, chosen: Sequence[int]) -> Any:
    """Return the data set with these images alone."""
    ends = list(dataset.cumulative_sizes) if isinstance(dataset, ConcatDataset) else [len(dataset)]
    parts = []
    for leaf, begin, end in zip(leaves(dataset), [0, *ends], ends, strict=False):
        own = [index - begin for index in chosen if begin <= index < end]
        if own:
            keep_images_(leaf, own)
            parts.append(leaf)
    if len(parts) == 1:
        return evaluated(parts[0])
    # One metric over all of them, where mmdet can compute it: not for COCO's kind, not for a mix.
    kinds = {type(part) for part in parts}
    separate = len(kinds) > 1 or any(isinstance(part, CocoDataset) for part in parts)
    if separate:
        log.warning(
            "%d training sets are measured one by one; the main metric is that of the first",
            len(parts),
        )
    return evaluated(ConcatDataset(parts, separate_eval=separate))


def keep_images_(leaf: Any, chosen: Sequence[int]) -> None:
    """Remove all other images from an mmdet data set, in place.

    Args:
        leaf: A data set that reads images.
        chosen: Indices of the images to keep.

    Raises:
        ValueError: The data set is not of mmdet's kind, so it cannot be divided.
    """
    infos = infos_of(leaf)
    if infos is None:
        raise ValueError(
            f"{set_name(leaf)} ({type(leaf).__name__}) cannot be divided into images to calibrate"
            " and images to measure on; give a data.val"
        )
    for name in ("data_infos", "img_ids", "proposals", "flag"):
        values = getattr(leaf, name, None)
        if values is not None and len(values) == len(infos):
            setattr(leaf, name, _entries(values, chosen))


def _entries(values: Any, chosen: Sequence[int]) -> Any:
    if isinstance(values, np.ndarray):
        return values[list(chosen)]
    return type(values)(values[index] for index in chosen)
