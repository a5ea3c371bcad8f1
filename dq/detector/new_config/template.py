"""A shipped detector's config, filled in for a data set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcv import Config

from dq.data.own.anchors import Anchors
from dq.data.own.statistics import STEP, Scaling
from dq.detector.config.nested_sections import dicts_in

# The type of anchors that are given as widths and heights.
FITTED = "YOLOAnchorGenerator"
# A training sees about this many images, in at most and at least this many passes over the data.
IMAGES_SEEN, MOST_PASSES, FEWEST_PASSES = 16_000, 60, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a config says about its data.

    Attributes:
        classes: Names by label.
        side: Of the square input in pixels.
        root: Folder that file names in the annotations are relative to.
        annotations: Folder of the COCO files, one for each split.
        tested: Split to test on.
        images: Number of images to train on.
        anchors: Fitted ones; None for a detector without.
        backbone: A file with weights of the backbone, or of a whole detector.
    """

    classes: tuple[str, ...]
    side: int
    root: Path
    annotations: Path
    tested: str
    images: int
    anchors: Anchors | None
    backbone: Path | None


def scaling_of(template: Config, side: int) -> Scaling:
    """Return how the detector's test pipeline brings images to a square input."""
    steps = list(dicts_in(template.test_pipeline))
    keeps = next(step.get("keep_ratio", True) for step in steps if step.get("type") == "Resize")
    return Scaling(size=(side, side), keeps_ratio=bool(keeps))


def anchors_wanted(template: Config) -> tuple[list[int], int] | None:
    """Return the strides of the levels and the number of anchors; None without fitted anchors."""
    for section in dicts_in(template.model):
        if section.get("type") == FITTED:
            return list(section["strides"]), len(section["base_sizes"][0])
    return None


def filled(template: Config, facts: Facts) -> dict[str, Any]:
    """Return the template's settings for a data set; the template does not change.

    Raises:
        ValueError: The file of the backbone does not exist.
    """
    settings: dict[str, Any] = template._cfg_dict.to_dict()
    settings |= {
        "classes": facts.classes,
        "image_size": (facts.side, facts.side),
        "data_root": str(facts.root),
        "annotations": str(facts.annotations),
    }
    for section in dicts_in(settings["model"]):
        if "num_classes" in section:
            section["num_classes"] = len(facts.classes)
        if section.get("type") == FITTED and facts.anchors is not None:
            section["base_sizes"] = [list(level) for level in facts.anchors.sizes]
        if "random_size_range" in section:
            section["random_size_range"] = (facts.side // STEP,) * 2
    _set_backbone_(settings["model"]["backbone"], facts.backbone)
    settings["data"]["test"]["ann_file"] = f"${{annotations}}/{facts.tested}.json"
    epochs = settings["runner"]["max_epochs"]
    passes = min(max(IMAGES_SEEN / facts.images, FEWEST_PASSES), MOST_PASSES)
    settings["data"]["train"]["times"] = max(1, math.ceil(passes / epochs))
    return settings


def _set_backbone_(backbone: dict[str, Any], file: Path | None) -> None:
    backbone.pop("init_cfg", None)
    if file is None:
        return
    if not file.is_file():
        raise ValueError(f"--backbone {file} does not exist; leave it out to train from scratch")
    backbone["init_cfg"] = {"type": "Pretrained", "checkpoint": str(file.absolute())}
    if _is_whole_detector(file):
        backbone["init_cfg"]["prefix"] = "backbone"


def _is_whole_detector(file: Path) -> bool:
    """Return whether a file of weights has those of a backbone below ``backbone.``.

    Raises:
        ValueError: It cannot be read.
    """
    import torch

    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # any file may be given
        raise ValueError(
            f"--backbone {file} cannot be read as a file of weights: give one of torch.save"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    return any(str(key).removeprefix("module.").startswith("backbone.") for key in state)
