"""The tiny digits as an mmdet data set with random augmentation, fast enough for unit tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmcv import Config
from mmdet.datasets import build_dataset

import dq.detector.data.voc_folder  # noqa: F401  (registers VOCFolderDataset)
from dq.data.digits import CLASSES
from dq.detector.data.checks.images import inspect
from dq.detector.loading.to_device import to_device

LOADING: list[dict[str, Any]] = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations", "with_bbox": True},
]
AUGMENTATION: list[dict[str, Any]] = [
    {"type": "MinIoURandomCrop", "min_ious": (0.3, 0.9), "min_crop_size": 0.4},
    {"type": "Resize", "img_scale": (48, 48), "keep_ratio": False},
    {"type": "RandomFlip", "flip_ratio": 0.5},
    {"type": "PhotoMetricDistortion"},
]
FORMATTING: list[dict[str, Any]] = [
    {"type": "DefaultFormatBundle"},
    {"type": "Collect", "keys": ["img", "gt_bboxes", "gt_labels"]},
]
MIXING: list[dict[str, Any]] = [
    {"type": "Mosaic", "img_scale": (48, 48)},
    {"type": "RandomAffine", "border": (-24, -24)},
    {"type": "MixUp", "img_scale": (48, 48)},
    {"type": "RandomFlip", "flip_ratio": 0.5},
    {"type": "Resize", "img_scale": (48, 48), "keep_ratio": False},
]


def section(folder: Path, pipeline: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return the config section of the digits for training."""
    return {
        "type": "VOCFolderDataset",
        "classes": CLASSES,
        "ann_file": str(folder / "ImageSets/Main/train.txt"),
        "img_prefix": str(folder),
        "pipeline": pipeline or LOADING + AUGMENTATION + FORMATTING,
    }


def mixed(folder: Path) -> dict[str, Any]:
    """Return the section of a data set with Mosaic and MixUp, as in YOLOX."""
    return {
        "type": "MultiImageMixDataset",
        "dataset": section(folder, LOADING),
        "pipeline": MIXING + FORMATTING,
    }


def built(section: dict[str, Any]) -> Any:
    """Return the data set, checked as in the launcher."""
    dataset = build_dataset(section)
    inspect(dataset, "train")
    return dataset


def config(**options: Any) -> Config:
    """Return the part of a config that a training loader reads, with loader options."""
    chosen = {"samples_per_gpu": 2, "workers_per_gpu": 0, **options}
    return Config({"data": {"train_dataloader": chosen}, "runner": {"type": "EpochBasedRunner"}})


def names(batch: Any) -> list[str]:
    """Return the names of a micro-batch's images."""
    return [Path(meta["filename"]).stem for meta in batch["img_metas"].data[0]]


def content(batch: Any) -> tuple[Any, ...]:
    """Return the content of a micro-batch in a form that ``==`` compares."""
    plain = to_device(batch, "cpu")
    boxes = [box.tolist() for box in plain["gt_bboxes"]]
    return plain["img"].numpy().tobytes(), boxes, [label.tolist() for label in plain["gt_labels"]]
