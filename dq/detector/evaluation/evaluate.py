"""Evaluate a detector on all ranks: each image on one rank, the metric on the main rank."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from dq.detector.config.registry_errors import explain
from dq.detector.data.datasets import evaluation_loader
from dq.detector.data.evaluated_sets import grouped_by_set, without_number
from dq.detector.data.image_shapes import ImageShapes
from dq.detector.evaluation.metric_settings import arguments_of
from dq.detector.loading.to_device import to_device
from dq.detector.metrics.mmdet_metrics import metrics_of_mmdet
from dq.detector.metrics.results import encoded, own_copy
from dq.dist.exchange import collectives
from dq.dist.watch.signals import Stopped
from dq.dist.work.all_here import wait_for_all_ranks
from dq.dist.work.on_main_rank import on_main_rank
from dq.error_text import with_type
from dq.progress import progress

log = logging.getLogger(__name__)
# Names of the box metric; LVIS calls it AP.
_BOXES = ("bbox_mAP", "mAP", "bbox_AP")
# Metrics that mmdet gives in percent.
_PERCENT = re.compile(r"[PSR]Q(_th|_st)?|(occluded|separated)_recall")
# Errors of mmdet's metrics for unexpected results, settings and packages.
_REFUSALS = (
    *(KeyError, TypeError, AssertionError, AttributeError, IndexError, ZeroDivisionError),
    *(NotImplementedError, ImportError),
)
# Called with a batch on the device and its results, in which masks are still bitmaps.
Watch = Callable[[Mapping[str, Any], list[Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The metrics of a data set.

    Attributes:
        metrics: Numbers by name, at least one; metrics that cannot be computed are left out.
        texts: mmdet's other return values by name: lines of text to copy.
        tables: The tables that mmdet prints.
    """

    metrics: dict[str, float]
    texts: dict[str, str]
    tables: str


@torch.no_grad()
def detect(
    detector: nn.Module,
    dataset: Any,
    *,
    device: torch.device,
    workers: int = 1,
    watch: Watch | None = None,
) -> list[Any] | None:
    """Run the detector on the data set; the images are distributed over the ranks.

    Every rank must call it. No image is processed twice, so the results are those of one process.

    Args:
        detector: Unwrapped, equal on all ranks; left in evaluation mode.
        dataset: In test mode.
        device: Device of the detector.
        workers: Worker processes of this rank.
        watch: Called with each batch of this rank and its results.

    Returns:
        On the main rank mmdet's results in the data set's order, masks encoded; on other ranks
        None.
    """
    detector.eval()
    shapes = ImageShapes(dataset)
    loader = evaluation_loader(dataset, workers=workers)
    results: list[Any] = []
    for batch in progress(loader, "evaluation", "image[s]"):
        inputs = to_device(batch, device)
        found = list(detector(return_loss=False, rescale=True, **inputs))
        if watch is not None:
            watch(inputs, found)
        results.extend(encoded(found))
        shapes.add(inputs)
    # An evaluation may take hours, and one rank may need half as long again as the others.
    wait_for_all_ranks("the results of all images")
    parts = collectives.gather_objects((results, shapes.shapes))
    if parts is None:
        return None
    shapes.set_shapes(_in_order([part[1] for part in parts], len(dataset)))
    return _in_order([part[0] for part in parts], len(dataset))


def _in_order(parts: list[list[Any]], total: int) -> list[Any]:
    """Merge the ranks' results in the data set's order; rank ``r`` of ``n`` had ``r, r + n``."""
    if not any(parts):
        return []
    ordered: list[Any] = [None] * total
    for rank, part in enumerate(parts):
        ordered[rank :: len(parts)] = part
    return ordered


def score(dataset: Any, results: list[Any], settings: Mapping[str, Any]) -> dict[str, float]:
    """Return only the metrics of `scores`."""
    return scores(dataset, results, settings).metrics


def scores(dataset: Any, results: list[Any], settings: Mapping[str, Any]) -> Scores:
    """Return the data set's own metrics of these results.

    A metric that cannot be computed is left out (mmdet returns -1 or NaN if there is no box of that
    size or class). If it is the main metric, it counts as 0, because result tables need that one.

    Args:
        dataset: An mmdet data set.
        results: Results of every image, in order; not changed.
        settings: The config's ``evaluation`` section; keys about when to evaluate are ignored.

    Raises:
        ValueError: The data set cannot evaluate such results, or the settings do not fit.
    """
    if not hasattr(dataset, "evaluate"):
        raise ValueError(f"{type(dataset).__name__} has no evaluate method; it cannot be evaluated")
    with metrics_of_mmdet() as tables:
        try:
            found = dataset.evaluate(
                own_copy(results), logger=tables.logger, **arguments_of(settings)
            )
        except (ValueError, RuntimeError, OSError, Stopped):
            raise
        except _REFUSALS as error:
            raise ValueError(_not_evaluated(dataset, error)) from error
        except Exception as error:  # a custom metric may raise anything
            name = type(dataset).__name__
            raise RuntimeError(
                f"{name}.evaluate failed: {with_type(explain(error), error)}"
            ) from error
    numeric = int | float | np.floating
    numbers = {k: float(v) for k, v in (found or {}).items() if isinstance(v, numeric)}
    kept = {k: v for k, v in numbers.items() if not math.isnan(v) and v != -1}
    if not numbers:
        raise ValueError(f"{type(dataset).__name__}.evaluate returns no number")
    first = main_metric(numbers)[0]
    if first not in kept:
        log.warning("%s cannot be computed: there are no annotated objects; it counts as 0", first)
        kept = {first: 0.0, **kept}
    texts = {k: v for k, v in (found or {}).items() if isinstance(v, str)}
    return Scores(metrics=kept, texts=texts, tables=tables.text)


def _not_evaluated(dataset: Any, error: Exception) -> str:
    return (
        f"{type(dataset).__name__} cannot evaluate these results:"
        f" {with_type(explain(error), error)}; see evaluation.metric and the other settings there"
    )


def evaluate(
    detector: nn.Module,
    dataset: Any,
    settings: Mapping[str, Any],
    *,
    device: torch.device,
    workers: int = 1,
) -> dict[str, float]:
    """Return the metrics of `detect` and `score`, equal on every rank. Every rank must call it.

    Raises:
        ValueError: The data set cannot evaluate such results (raised on all ranks).
    """
    results = detect(detector, dataset, device=device, workers=workers)
    return on_main_rank(lambda: score(dataset, results or [], settings))


def main_metric(metrics: Mapping[str, float]) -> tuple[str, float]:
    """Return name and value of the main metric for result tables: box mAP, 0 to 1.

    If both COCO's and VOC's exist, it is the one requested first. If there are several data sets,
    it is that of the first.
    """
    name = main_metrics(metrics)[0]
    return name, as_share(name, metrics[name])


def main_metrics(metrics: Mapping[str, float]) -> list[str]:
    """Return the name of each data set's `main_metric`."""
    return [_main(names) for names in grouped_by_set(metrics)]


def as_share(name: str, value: float) -> float:
    """Return a metric in 0 to 1; panoptic quality and occluded recall come in percent."""
    return value / 100 if _PERCENT.fullmatch(without_number(name)) else value


def _main(names: Sequence[str]) -> str:
    plain = {name: without_number(name) for name in names}
    boxes = [name for name in names if plain[name] in _BOXES]
    return [*boxes, *(n for n in names if plain[n] == "AR@1000"), *names][0]
