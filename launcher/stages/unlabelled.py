"""Calibrate, search and train on a folder of images without annotations (``--images``)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dq.counted import counted
from dq.detector.config.read import training_config
from dq.detector.data.class_names import class_list, classes_of_checkpoint
from dq.detector.data.data_section import test_pipeline
from dq.detector.data.datasets import dataset_of
from dq.detector.data.image_folder import (
    confident_boxes,
    image_files,
    section,
    training_pipeline,
)
from dq.detector.evaluation.evaluate import detect
from dq.detector.model.stored_detector import float_detector
from dq.dist.work.on_main_rank import on_main_rank
from dq.quant.training.distillation import Distill
from dq.tracking.record.json_file import json_text
from dq.tracking.record.stage_summary import key_of
from dq.whole_file import write_whole
from launcher.plan import Plan
from launcher.session import Session
from launcher.settings import described, described_quantization
from launcher.stage.stage import read_checkpoint

log = logging.getLogger(__name__)

# Every second image is for calibration, the others are for evaluation.
CALIBRATING, MEASURING, ALL = (0, 2), (1, 2), (0, 1)
BOXES = "float_boxes.json"
# Hooks that change the training pipeline of the config, which is not used.
OF_PIPELINE = ("YOLOXModeSwitchHook", "SyncRandomSizeHook")


def with_images(
    plan: Plan,
    place: Session,
    checkpoint: Path,
    folder: Path,
    *,
    trusted: bool,
    trains: bool = False,
) -> Plan:
    """Return the plan with the images of a folder as ``data.train`` and ``data.val``.

    The boxes of the float detector are used as annotations, so a metric measures how much a
    quantized detector agrees with it. The images also replace ``data.test`` if that does not exist,
    or for a training. A training learns only from the float detector; no annotations are read.
    Every rank must call it.

    Args:
        plan: The plan of the config.
        place: The process; the boxes are written into ``float_boxes.json`` in its work dir.
        checkpoint: Checkpoint of the float detector.
        folder: Folder of the images.
        trusted: Whether the checkpoint may be unpickled.
        trains: Whether the plan is for quantization-aware training.

    Raises:
        ValueError: There are no images, one cannot be read, or the detector finds no objects.
    """
    parent = read_checkpoint(checkpoint, trusted=trusted)
    classes = classes_of_checkpoint(class_list(plan.config), parent.content)
    photographs = _photographs(plan, place, classes, folder)
    config = copy.deepcopy(plan.config)
    config.data.train = photographs.section(photographs.calibrating)
    config.data.val = photographs.section(photographs.measuring)
    detector = float_detector(config, parent.content, parent.source, place.device)
    boxes = place.experiment / BOXES
    number = _write_boxes(detector, config, boxes, place.device)
    if not number:
        raise ValueError(f"{parent.source} finds nothing in the images of {photographs.folder}")
    log.info(
        "%s of %s; the float detector finds %s",
        counted(len(photographs.names), "image[s]"),
        photographs.folder,
        counted(number, "box[es]"),
    )
    config.data.val = photographs.section(photographs.measuring, boxes)
    if trains or not _has_test_images(plan.config):
        log.warning(
            "the result is measured on images of %s, against the float detector", photographs.folder
        )
        config.data.test = photographs.section(photographs.measuring, boxes)
    if trains:
        config.data.train.update(pipeline=training_pipeline(photographs.pipeline), test_mode=False)
        config.custom_hooks = _without_pipeline(config.get("custom_hooks"))
        plan = _distilled(plan, config, photographs.key)
    return replace(plan, config=config, text=f"{plan.text}{photographs.key}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Photographs:
    """The images of a folder, and how they are read.

    Attributes:
        folder: The folder, absolute.
        names: Paths of the images in it, relative.
        key: Changes with the folder and with the names or sizes of the images.
        without: The work dir; pictures in it do not count as images of the folder.
        classes: The detector's classes.
        pipeline: The config's test pipeline.
    """

    folder: Path
    names: Sequence[str]
    key: str
    without: Path
    classes: Sequence[str]
    pipeline: Sequence[Any]

    @property
    def calibrating(self) -> tuple[int, int]:
        return CALIBRATING if len(self.names) > 1 else ALL

    @property
    def measuring(self) -> tuple[int, int]:
        return MEASURING if len(self.names) > 1 else ALL

    def section(self, part: tuple[int, int], boxes: Path | None = None) -> dict[str, Any]:
        """Return a data section of a part of the images, with boxes from a file or none."""
        found = section(self.folder, self.classes, self.pipeline, part, boxes)
        return {**found, "without": str(self.without)}


def _photographs(plan: Plan, place: Session, classes: Sequence[str], folder: Path) -> _Photographs:
    """Find the images of a folder; every rank must call it."""
    folder = folder.resolve()
    # Drawings and plots in a work dir inside the folder are no photographs.
    work_dir = place.experiment.resolve()
    names: Sequence[str] = on_main_rank(lambda: image_files(folder, work_dir))
    sizes = on_main_rank(lambda: _sizes(folder, names))
    pipeline = test_pipeline(plan.config)
    if pipeline is None:
        raise ValueError("--images needs the pipeline of data.test, and it has none")
    return _Photographs(
        folder=folder,
        names=names,
        key=key_of(folder, *names, sizes),
        without=work_dir,
        classes=classes,
        pipeline=pipeline,
    )


def _sizes(folder: Path, names: Sequence[str]) -> list[int]:
    try:
        return [(folder / name).stat().st_size for name in names]
    except FileNotFoundError as error:
        raise ValueError(
            f"--images {folder} changes: {error.filename} has been removed; start again when"
            " nothing writes there"
        ) from error


def _write_boxes(detector: Any, config: Any, file: Path, device: torch.device) -> int:
    """Write what a detector finds in ``data.val`` into a file; return the number of boxes.

    Every rank must call it.
    """
    dataset = dataset_of(config, "val", test_mode=True, quiet=True)
    results = detect(detector, dataset, device=device, workers=0)

    def write() -> int:
        assert results is not None
        found = confident_boxes(dataset, results)
        write_whole(file, json_text(found))
        return sum(len(rows) for rows in found.values())

    return on_main_rank(write)


def _distilled(plan: Plan, config: Any, photographs: str) -> Plan:
    """Return the plan with distillation as the only loss.

    The photographs are part of its settings, so that a training is not resumed with others.

    Batch norms keep the float detector's statistics. With statistics of the batch the outputs would
    differ for this reason alone, and so would the loss.
    """
    refinements = plan.settings.refinements
    distill = replace(refinements.distill or Distill(), alone=True)
    training = dict(plan.settings.training)
    if "custom_hooks" in training:
        training["custom_hooks"] = _without_pipeline(training["custom_hooks"])
    changed = replace(
        plan.settings,
        training=training,
        refinements=replace(refinements, distill=distill),
        schedule=replace(plan.settings.schedule, freeze_norm_after=0.0),
    )
    own = described(training_config(config, training)) | described_quantization(changed)
    own["data.train.photographs"] = repr(photographs[:16])
    return replace(plan, settings=changed, described={**plan.described, "qat": own})


def _without_pipeline(hooks: Any) -> list[Any]:
    """Return ``custom_hooks`` without those that change mosaic or the size of images."""
    given = hooks if isinstance(hooks, list | tuple) else [hooks] if hooks else []
    return [
        hook
        for hook in given
        if not (isinstance(hook, Mapping) and hook.get("type") in OF_PIPELINE)
    ]


def _has_test_images(config: Any) -> bool:
    try:
        dataset_of(config, "test", test_mode=True, quiet=True)
    except ValueError:
        return False
    return True
