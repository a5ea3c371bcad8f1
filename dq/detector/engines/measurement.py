"""A detector's evaluation on ``data.test``, rounding as its export will."""

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
    """What an evaluation leaves of its results besides the metrics.

    Attributes:
        out: A pickle of mmdet's results.
        painted: A folder of the test images with what is found in them.
        lowest_score: Boxes below are not painted.
    """

    out: Path | None = None
    painted: Path | None = None
    lowest_score: float = 0.3


NOTHING = Keep()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A detector's evaluation on ``data.test``.

    Attributes:
        metrics: Equal on all ranks.
        classes: Average precision of each class at IoU 0.5.
        tables: What mmdet prints of the metrics.
        images_per_s: On all ranks together.
        dataset: What was evaluated on.
        results: mmdet's, of all images; main rank only.
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

    On the CPU a quantized one computes as its export will, to the last bit. A GPU has no sums of
    integers in torch, so there it rounds real numbers, which differs where ties fall.

    Args:
        config: As `dq.detector.config.read.finish` returns it.
        detector: On the device.
        graph: Its own; None for a float detector.
        device: Where the detector is.
        keep: What to write of the results.
        dataset: In test mode; None for ``data.test``.

    Raises:
        ValueError: On all ranks: the data set cannot evaluate what the detector finds.
    """
    if dataset is None:
        dataset = dataset_of(config, "test", test_mode=True)
    results, seconds = detected(config, detector, graph, device, dataset, keep)
    found, classes = _scored(config, dataset, results)
    name, value = main_metric(found.metrics)
    log.info("%s on %d images: %.2f %%", name, len(dataset), 100 * value)
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
    """Return mmdet's results of a data set, on the main rank, and the seconds they took.

    What is to be kept of them is written before any metric is computed. Every rank must call it.

    Args:
        config: Says how ``data.test`` is loaded.
        detector: On the device.
        graph: Its own; None for a float detector.
        device: Where the detector is.
        dataset: In test mode.
        keep: What to write of the results.
    """
    watch = None
    if keep.painted is not None:
        watch = Painter(detector, dataset, keep.painted, keep.lowest_score)
    workers = evaluation_workers(config, "test")
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        if graph is not None and device.type == "cpu":
            stack.enter_context(exact_arithmetic(detector, graph))
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

    The main rank computes them, however long it takes, and what it raises is raised on all.
    """

    def work() -> tuple[Scores, dict[str, float]]:
        settings = config.get("evaluation") or {}
        assert results is not None
        return scores(dataset, results, settings), class_precision(dataset, results)

    return on_main_rank(work)
