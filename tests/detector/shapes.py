"""Data sections in every form that mmdet accepts, with the digits."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

from mmcv import Config

from dq.data.digits import CLASSES
from tests.detector.small_set import FORMATTING, LOADING

SIZE = (48, 48)
TRAINING: list[dict[str, Any]] = [
    *LOADING,
    {"type": "Resize", "img_scale": SIZE, "keep_ratio": False},
    {"type": "RandomFlip", "flip_ratio": 1.0},
    *FORMATTING,
]
TESTING: list[dict[str, Any]] = [
    {"type": "LoadImageFromFile"},
    {
        "type": "MultiScaleFlipAug",
        "img_scale": SIZE,
        "flip": False,
        "transforms": [
            {"type": "Resize", "keep_ratio": False},
            {"type": "Normalize", "mean": [0.0] * 3, "std": [1.0] * 3, "to_rgb": False},
            {"type": "ImageToTensor", "keys": ["img"]},
            {"type": "Collect", "keys": ["img"]},
        ],
    },
]
# Pipeline steps after loading, for mixed images.
MIXED: list[dict[str, Any]] = [
    {"type": "Mosaic", "img_scale": SIZE},
    {"type": "RandomFlip", "flip_ratio": 0.5},
    {"type": "Resize", "img_scale": SIZE, "keep_ratio": False},
    *FORMATTING,
]


def images(folder: Path) -> list[str]:
    """Return the names of all images of the digits."""
    lists = sorted((folder / "ImageSets/Main").glob("t*.txt"))
    return [name for path in lists for name in path.read_text().split()]


def part(folder: Path, number: int, size: int, pipeline: list[Any]) -> dict[str, Any]:
    """Return the section of a separate data set with this number of the digits' images."""
    path = folder / f"part_{number}_{size}.txt"
    names = images(folder)
    path.write_text("\n".join(names[(number * 5 + i) % len(names)] for i in range(size)) + "\n")
    return {
        "type": "VOCFolderDataset", "classes": CLASSES, "ann_file": str(path),
        "img_prefix": str(folder), "pipeline": pipeline,
    }  # fmt: skip


def nesting(
    folder: Path, draw: random.Random, pipeline: list[Any], depth: int = 3, *, mixing: bool = True
) -> Any:
    """Return a section of a random form."""
    kinds = ["one", "files"] if not depth else [
        "one", "files", "list", "concat", "repeat", "balanced", *(["mix"] if mixing else []),
    ]  # fmt: skip

    def inner(**more: Any) -> Any:
        return nesting(folder, draw, pipeline, depth - 1, mixing=mixing, **more)

    kind = draw.choice(kinds)
    one = part(folder, draw.randrange(9), draw.randrange(4, 8), pipeline)
    if kind == "one":
        return one
    if kind == "files":
        other = part(folder, draw.randrange(9), draw.randrange(4, 8), pipeline)
        files = [one["ann_file"], other["ann_file"]]
        prefix = one["img_prefix"]
        return {**one, "ann_file": files, "img_prefix": draw.choice([prefix, [prefix, prefix]])}
    if kind in ("list", "concat"):
        parts = [inner() for _ in range(draw.randrange(1, 4))]
        return parts if kind == "list" else {"type": "ConcatDataset", "datasets": parts}
    if kind == "repeat":
        return {"type": "RepeatDataset", "times": 2, "dataset": inner()}
    if kind == "balanced":
        return {"type": "ClassBalancedDataset", "oversample_thr": 0.5, "dataset": inner()}
    # Images to be mixed are only loaded in the inner section; their pipeline has no last step.
    return {
        "type": "MultiImageMixDataset",
        "dataset": nesting(folder, draw, LOADING, depth - 1, mixing=False),
        "pipeline": MIXED,
    }


def config_of(train: Any, val: Any, test: Any, **more: Any) -> Config:
    """Return a config with these sections and the other keys that the stages read."""
    data = {"train": train, "val": val, "test": test, "samples_per_gpu": 2, "workers_per_gpu": 0}
    given = {name: section for name, section in data.items() if section is not None}
    runner = {"type": "EpochBasedRunner", "max_epochs": 1}
    return Config({"data": copy.deepcopy(given), "model": {}, "runner": runner, **more})
