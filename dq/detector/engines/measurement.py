"""Evaluate a detector on ``data.test``, with the arithmetic of its export."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmcv import Config
from torch import nn

from dq.counted import counted
from dq.detector.data.datasets import dataset_of
from dq.detector.data.loader_options import evaluation_workers
from dq.detector.engines.exact_torch import exact_arithmetic
from dq.detector.evaluation.evaluate import Scores, detect, main_metric, scores
from dq.detector.evaluation.kept_predictions import class_precision
from dq.detector.evaluation.results_file import Painter, write_results
from dq.dist.work.on_main_rank import on_main_rank
from dq.quant.graph.quantized_graph import QuantizedGraph

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """The files that an evaluation writes besides the metrics.

    Attributes:
        out: File for a pickle of mmdet's results.
        painted: Folder for the test images with the detections drawn in.
        lowest_score: Detections with a lower score are not drawn.
    """

    out: Path | None = None
    painted: Path | None = None
    lowest_score: float = 0.3


NOTHING = Keep()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A detector's evaluation on ``data.test``.

    Attributes:
        metrics: All metrics; equal on all ranks.
        classes: Average precision of each class at IoU 0.5.
        tables: The tables that mmdet prints of the metrics.
        images_per_s: Images per second of all ranks together.
        dataset: The test data set.
        results: mmdet's results of all images; only on the main rank.
    """

    metrics: dict[str, float]
    classes: dict[str, float]
    tables: str
    images_per_s: float
    dataset: Any
    results: list[Any]


def measure(
    config: Config,
    detector: nn.Module,
    graph: QuantizedGraph | None,
    device: torch.device,
    keep: Keep = NOTHING,
    *,
    dataset: Any = None,
) -> Measurement:
    """Evaluate a detector over all ranks; every rank must call it.

    On the CPU a quantized detector computes the same as its export, bit for bit. On a GPU torch has
    no integer sums, so the detector fake-quantizes in float, which may differ at rounding ties.

    Args:
        config: Result of `dq.detector.config.read.finish`.
        detector: On the device.
        graph: The detector's quantized graph; None for a float detector.
        device: The device of the detector.
        keep: The files to write.
        dataset: In test mode; None for ``data.test``.

    Raises:
        ValueError: On all ranks: the data set cannot evaluate the detector's results.
    """
    if dataset is None:
        dataset = dataset_of(config, "test", test_mode=True)
    results, seconds = detected(config, detector, graph, device, dataset, keep)
    found, classes = _scored(config, dataset, results)
    name, value = main_metric(found.metrics)
    log.info("%s on %s: %.2f %%", name, counted(len(dataset), "image[s]"), 100 * value)
    return Measurement(
        metrics=found.metrics,
        classes=classes,
        tables=found.tables,
        images_per_s=round(len(dataset) / max(1e-9, seconds), 2),
        dataset=dataset,
        results=results or [],
    )


def detected(
    config: Config,
    detector: nn.Module,
    graph: QuantizedGraph | None,
    device: torch.device,
    dataset: Any,
    keep: Keep,
) -> tuple[list[Any] | None, float]:
    """Run a detector on a data set over all ranks; every rank must call it.

    The results are written here, before any metric is computed.

    Args:
        config: Its ``data.test`` has the settings of the loader.
        detector: On the device.
        graph: The detector's quantized graph; None for a float detector.
        device: The device of the detector.
        dataset: In test mode.
        keep: The files to write.

    Returns:
        mmdet's results of all images on the main rank, None on others; and the time in seconds.
    """
    watch = None
    if keep.painted is not None:
        watch = Painter(detector, dataset, keep.painted, keep.lowest_score)
    workers = evaluation_workers(config, "test")
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        if graph is not None and device.type == "cpu":
            stack.enter_context(exact_arithmetic(detector, graph))
        elif graph is not None:
            log.info(
                "on %s the quantized detector fake-quantizes in float: its metrics may differ from"
                " those of the exported model, which --device cpu gives",
                device.type,
            )
        results = detect(detector, dataset, device=device, workers=workers, watch=watch)
    seconds = time.monotonic() - began
    if keep.out is not None:
        path = keep.out
        on_main_rank(lambda: write_results(path, results or []))
    return results, seconds


def _scored(
    config: Config, dataset: Any, results: list[Any] | None
) -> tuple[Scores, dict[str, float]]:
    """Return the metrics, and the precision of each class, on all ranks; every rank must call it.

    The main rank computes them while the others wait without a timeout; its errors are raised on
    all ranks.
    """

    def work() -> tuple[Scores, dict[str, float]]:
        settings = config.get("evaluation") or {}
        assert results is not None
        return scores(dataset, results, settings), class_precision(dataset, results)

    return on_main_rank(work)
