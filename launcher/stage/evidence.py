"""Write predictions and pictures of a finished stage, and measure its quantizers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from dq.detector.engines.measurement import Measurement
from dq.detector.evaluation.kept_predictions import boxes_unrounded, predictions_of
from dq.detector.evaluation.matches import matches_of
from dq.detector.hooks.tracking import Figures
from dq.detector.metrics.mmdet_metrics import metrics_of_mmdet
from dq.error_text import typed_error_text
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.ptq.repairs import first_images
from dq.tracking.pictures.distinct_paths import distinct_paths
from dq.tracking.pictures.drawing import draw_pair
from dq.tracking.pictures.predictions import (
    Box,
    Predictions,
    most_different,
    read_predictions,
    with_reference,
    write_predictions,
)
from dq.tracking.record.matches import write_matches
from launcher.stage.stage import Stage

log = logging.getLogger(__name__)
SAMPLES = "samples"
# Without a float run to compare with, this many images are evaluated in float for each one shown.
CANDIDATES = 4


def figures_of(stage: Stage, graph: QuantizedGraph) -> Figures | None:
    """Return the object that measures the quantizers, or None if that is turned off."""
    plan, number = stage.plan, stage.plan.tracking.quantizer_images
    if not number:
        return None
    return Figures(
        graph, lambda: first_images(plan.calibration_batches(), number), stage.place.device
    )


def keep_predictions(
    stage: Stage, detector: nn.Module, graph: QuantizedGraph | None, measurement: Measurement
) -> None:
    """Write ``predictions.json.gz``, and pictures of images where float and quantized differ.

    For the main rank. A failure is only one line in the log, because the stage's result does not
    depend on these files.

    Args:
        stage: With its tracker.
        detector: The evaluated detector.
        graph: Its quantized graph; None for a float detector.
        measurement: The evaluation.
    """
    number, folder = stage.plan.tracking.prediction_images, stage.folder
    if not number:
        return
    try:
        predictions = predictions_of(measurement.dataset, measurement.results)
        if predictions is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if graph is not None:
            reference = _stored_reference(stage.place.experiment / "float", predictions.classes)
            if reference is None:
                candidates = CANDIDATES * number
                reference = dict(
                    boxes_unrounded(
                        detector, graph, measurement.dataset, candidates, stage.place.device
                    )
                )
            predictions = with_reference(predictions, reference)
        write_predictions(folder, predictions)
        files = _drawn(predictions, number, folder / SAMPLES, stage.plan.bits)
        step = stage.tracker.last_step
        stage.tracker.images(step, files)
    except Exception as error:
        log.warning("no predictions are kept: %s", typed_error_text(error))


def _drawn(predictions: Predictions, number: int, folder: Path, bits: str) -> list[Path]:
    """Draw the images that differ most, and return the files of those that can be read."""
    pictures = most_different(predictions, number)
    paths = distinct_paths([folder / f"{Path(picture.name).stem}.jpg" for picture in pictures])
    files = (
        draw_pair(picture, predictions.classes, path, bits=bits)
        for picture, path in zip(pictures, paths, strict=True)
    )
    return [file for file in files if file is not None]


def keep_matches(stage: Stage, measurement: Measurement) -> None:
    """Write ``matches.npz``, from which `dq.tracking.reports.bootstrap` compares two detectors.

    For the main rank. A failure is only one line in the log, like that of `keep_predictions`.

    Args:
        stage: Of the evaluation.
        measurement: The evaluation.
    """
    try:
        with metrics_of_mmdet():
            found = matches_of(measurement.dataset, measurement.results)
        if found is not None:
            stage.folder.mkdir(parents=True, exist_ok=True)
            write_matches(stage.folder, found)
    except Exception as error:
        log.warning("no matches are kept: %s", typed_error_text(error))


def _stored_reference(folder: Path, classes: Sequence[str]) -> dict[str, Sequence[Box]] | None:
    """Return the boxes of the experiment's float run by image.

    None if there is no float run, or if it has other classes.
    """
    stored = read_predictions(folder)
    if stored is None or list(stored.classes) != list(classes):
        return None
    return {p.path: p.found for p in stored.pictures}
