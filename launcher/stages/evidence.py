"""What a finished stage leaves to be looked at: predictions, pictures, figures of quantizers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dq.detector.evaluation.kept_predictions import boxes_of_first, predictions_of
from dq.detector.hooks.tracking import Figures
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.ptq.repairs import first_images
from dq.quant.quantizers.phase import Phase, set_phase
from dq.tracking.pictures.drawing import draw_pair
from dq.tracking.pictures.predictions import (
    Box,
    most_different,
    read_predictions,
    with_reference,
    write_predictions,
)
from dq.tracking.tracker import Tracker
from launcher.plan import Plan
from launcher.session import Session

log = logging.getLogger(__name__)
SAMPLES = "samples"
# Where there is no float run to compare with, so many times as many images as are shown are tried.
CANDIDATES = 4


def figures_of(plan: Plan, place: Session, graph: QuantizedGraph) -> Figures | None:
    """Return what measures the quantizers, None where that is turned off."""
    number = plan.tracking.quantizer_images
    if not number:
        return None
    return Figures(graph, lambda: first_images(plan.calibration_batches(), number), place.device)


def keep_predictions(
    plan: Plan,
    place: Session,
    tracker: Tracker,
    folder: Path,
    detector: nn.Module,
    graph: QuantizedGraph | None,
    dataset: Any,
    results: Sequence[Any],
    step: int,
) -> None:
    """Write ``predictions.json.gz``, and pictures where float and quantized differ.

    For the main rank. A failure is one line in the log: the stage's result does not hang on it.
    """
    number = plan.tracking.prediction_images
    if not number:
        return
    try:
        predictions = predictions_of(dataset, results)
        if predictions is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if graph is not None:
            reference = _reference(place, detector, graph, dataset, number, predictions.classes)
            predictions = with_reference(predictions, reference)
        write_predictions(folder, predictions)
        files = [
            draw_pair(
                picture,
                predictions.classes,
                folder / SAMPLES / f"{Path(picture.name).stem}.jpg",
                bits=plan.bits,
            )
            for picture in most_different(predictions, number)
        ]
        tracker.images(step, [file for file in files if file is not None])
    except Exception as error:
        log.warning("no predictions are kept: %s: %s", type(error).__name__, error)


def _reference(
    place: Session,
    detector: nn.Module,
    graph: QuantizedGraph,
    dataset: Any,
    number: int,
    classes: Sequence[str],
) -> dict[str, Sequence[Box]]:
    """Return the boxes of the experiment's float run, else of this detector, nothing rounded.

    A float run whose labels meant other classes is none to compare with.
    """
    stored = read_predictions(place.experiment / "float")
    if stored is not None and list(stored.classes) == list(classes):
        found: dict[str, Sequence[Box]] = {p.path: p.found for p in stored.pictures}
        return found
    set_phase(graph.quantizers, Phase.OFF)
    try:
        return dict(boxes_of_first(detector, dataset, CANDIDATES * number, place.device))
    finally:
        set_phase(graph.quantizers, Phase.FROZEN)
