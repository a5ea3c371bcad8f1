"""Evaluate a detector over all ranks: each image on one rank, the metric on the main rank."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
import torch
from mmdet.core.evaluation import mean_ap
from torch import nn

from dq.detector.batch import to_device
from dq.detector.data import evaluation_loader
from dq.detector.evaluated_sets import of_each_set, without_number
from dq.dist import collectives

log = logging.getLogger(__name__)
PROGRESS_S = 10.0
# Keys of the config's ``evaluation`` section that are for the hook and not for the data set.
TIMING = (
    "interval",
    "start",
    "by_epoch",
    "save_best",
    "rule",
    "dynamic_intervals",
    "tmpdir",
    "gpu_collect",
    "out_dir",
    "greater_keys",
    "less_keys",
    "broadcast_bn_buffer",
)


@torch.no_grad()
def detect(
    detector: nn.Module, dataset: Any, *, device: torch.device, workers: int = 1
) -> list[Any] | None:
    """Run the detector over the data set, its images shared out over the ranks.

    Every rank must call it. No image is seen twice, so nothing has to be cut off afterwards and
    the results are those of one process.

    Args:
        detector: Unwrapped, equal on all ranks; left in evaluation mode.
        dataset: In test mode.
        device: Where the detector is.
        workers: Loader processes of this rank.

    Returns:
        On the main rank mmdet's results in the data set's order, elsewhere None.
    """
    detector.eval()
    loader = evaluation_loader(dataset, workers=workers)
    results: list[Any] = []
    began = shown = time.monotonic()
    for number, batch in enumerate(loader, start=1):
        inputs = to_device(batch, device)
        results.extend(detector(return_loss=False, rescale=True, **inputs))
        now = time.monotonic()
        if now - shown > PROGRESS_S:
            shown = now
            remaining = (now - began) / number * (len(loader) - number)
            log.info("evaluated %d of %d images, %.0f s to go", number, len(loader), remaining)
    parts = collectives.gather_objects(results)
    if parts is None:
        return None
    ordered: list[Any] = [None] * len(dataset)
    for rank, part in enumerate(parts):
        ordered[rank :: len(parts)] = part
    return ordered


def score(dataset: Any, results: list[Any], settings: Mapping[str, Any]) -> dict[str, float]:
    """Return the data set's own metrics of these results.

    Args:
        dataset: An mmdet data set.
        results: Of every image, in order.
        settings: The config's ``evaluation`` section; what only concerns when to evaluate is
            ignored.
    """
    arguments = {k: v for k, v in settings.items() if k not in TIMING}
    with quiet_metric():
        metrics = dataset.evaluate(results, logger="silent", **arguments)
    numeric = int | float | np.floating
    return {k: float(v) for k, v in metrics.items() if isinstance(v, numeric)}


@contextlib.contextmanager
def quiet_metric() -> Iterator[None]:
    """Compute mmdet's metrics in the body: no table is printed, no process forked.

    The VOC metric would match boxes in a pool of forked processes, and a fork of a process that has
    threads (gloo's, the heartbeat's, the loader's) can inherit a lock that nobody will release.
    """
    forking = mean_ap.Pool
    mean_ap.Pool = ThreadPool
    try:
        # Some of mmdet's tables are printed, whatever the logger.
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        mean_ap.Pool = forking


def evaluate(
    detector: nn.Module,
    dataset: Any,
    settings: Mapping[str, Any],
    *,
    device: torch.device,
    workers: int = 1,
) -> dict[str, float]:
    """Return the metrics of `detect` and `score`, equal on every rank. Every rank must call it."""
    results = detect(detector, dataset, device=device, workers=workers)
    metrics = None if results is None else score(dataset, results, settings)
    shared: dict[str, float] = collectives.broadcast_object(metrics)
    return shared


def main_metric(metrics: Mapping[str, float]) -> tuple[str, float]:
    """Return name and value of the metric that a result table shows: box mAP, 0 to 1.

    Where COCO's and VOC's are both there, it is the one that was asked for first. Of several data
    sets it is the first one's.
    """
    name = main_metrics(metrics)[0]
    return name, metrics[name]


def main_metrics(metrics: Mapping[str, float]) -> list[str]:
    """Return the name of each data set's `main_metric`."""
    return [_main(names) for names in of_each_set(metrics)]


def _main(names: Sequence[str]) -> str:
    plain = {name: without_number(name) for name in names}
    boxes = [name for name in names if plain[name] in ("bbox_mAP", "mAP")]
    return [*boxes, *(n for n in names if plain[n] == "AR@1000"), *names][0]
