"""Calibrate and search on a folder of images without annotations (``--images``)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmcv import ConfigDict

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
from launcher.settings import described_quantization
from launcher.stages.stage import read_checkpoint

log = logging.getLogger(__name__)

# Every second image calibrates; the rest is measured.
CALIBRATING, MEASURING, ALL = (0, 2), (1, 2), (0, 1)
BOXES = "float_boxes.json"


def with_images(
    plan: Plan,
    place: Session,
    checkpoint: Path,
    folder: Path,
    *,
    trusted: bool,
    trains: bool = False,
) -> Plan:
    """Return the plan with the images of a folder in place of ``data.train`` and ``data.val``.

    Their truth is what the float detector itself finds, so a metric says how much a quantized
    detector agrees with it. If ``data.test`` is not there, its place is taken too. A training
    takes its place in any case, and learns from the float detector alone: no annotation is read.
    Every rank must call it.

    Args:
        plan: As read.
        place: Where the float detector's boxes are written: ``float_boxes.json`` in the work dir.
        checkpoint: Of the float detector.
        folder: Of the images.
        trusted: The checkpoint may be unpickled.
        trains: For a quantized training.

    Raises:
        ValueError: There are no images, one cannot be read, or the detector finds nothing.
    """
    parent = read_checkpoint(checkpoint, trusted=trusted)
    folder = folder.resolve()
    names: Sequence[str] = on_main_rank(lambda: image_files(folder))
    config = copy.deepcopy(plan.config)
    classes = classes_of_checkpoint(class_list(plan.config), parent.content)
    pipeline = test_pipeline(plan.config)
    if pipeline is None:
        raise ValueError("--images needs the pipeline of data.test, and it has none")
    halves = (CALIBRATING, MEASURING) if len(names) > 1 else (ALL, ALL)

    def images(part: tuple[int, int], boxes: Path | None = None) -> ConfigDict:
        return ConfigDict(section(folder, classes, pipeline, part, boxes))

    config.data.train, config.data.val = images(halves[0]), images(halves[1])
    boxes = place.experiment / BOXES
    detector = float_detector(config, parent.content, parent.source, place.device)
    dataset = dataset_of(config, "val", test_mode=True, quiet=True)
    results = detect(detector, dataset, device=place.device, workers=0)

    def write() -> int:
        assert results is not None
        found = confident_boxes(dataset, results)
        write_whole(boxes, json_text(found))
        return sum(len(rows) for rows in found.values())

    number = on_main_rank(write)
    if not number:
        raise ValueError(f"{parent.source} finds nothing in the images of {folder}")
    log.info("%d images of %s; the float detector finds %d boxes", len(names), folder, number)
    config.data.val = images(halves[1], boxes)
    if trains or not _has_test_images(plan.config):
        log.warning("the result is measured on images of %s, against the float detector", folder)
        config.data.test = images(halves[1], boxes)
    if trains:
        config.data.train.update(pipeline=training_pipeline(pipeline), test_mode=False)
        plan = _distilled(plan)
    return replace(plan, config=config, text=f"{plan.text}{key_of(folder, *names)}")


def _distilled(plan: Plan) -> Plan:
    """Return the plan with distillation as the only loss.

    Batch norms keep the float detector's statistics: those of a batch differ from them, and the
    loss would be about that difference.
    """
    refinements = plan.settings.refinements
    distill = replace(refinements.distill or Distill(), alone=True)
    changed = replace(
        plan.settings,
        refinements=replace(refinements, distill=distill),
        schedule=replace(plan.settings.schedule, freeze_norm_after=0.0),
    )
    described = {**plan.described["qat"], **described_quantization(changed)}
    return replace(plan, settings=changed, described={**plan.described, "qat": described})


def _has_test_images(config: Any) -> bool:
    try:
        dataset_of(config, "test", test_mode=True, quiet=True)
    except ValueError:
        return False
    return True
