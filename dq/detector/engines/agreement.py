"""An exported file's metric beside the fake-quantized detector's, and the gate between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from mmcv import Config
from torch import nn

from dq.detector.data.datasets import dataset_of
from dq.detector.data.loader_options import evaluation_workers
from dq.detector.evaluation.box_differences import BoxDifferences, box_differences
from dq.detector.evaluation.evaluate import as_share, detect, main_metrics, score
from dq.dist.work.on_main_rank import on_main_rank

# Of the metric, 0 to 1: a tenth of a percentage point.
GATE = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What two evaluations of one detector found.

    Attributes:
        metric: Name of the metric.
        integer: Its value for the exported file, 0 to 1.
        fake_quantized: Its value for the fake-quantized detector.
        metrics: All metrics of the exported file.
        boxes: Differences of the detections, the fake-quantized detector being the first.
        bytes_integer: Size of the exported network.
        bytes_float: Size of the same network in float.
        cause: Why the gate was missed, as far as is known; empty where it was passed.
    """

    metric: str
    integer: float
    fake_quantized: float
    metrics: Mapping[str, float]
    boxes: BoxDifferences
    bytes_integer: int
    bytes_float: int
    cause: str = ""

    @property
    def passed(self) -> bool:
        """Whether the two metrics are within `GATE` of each other."""
        return abs(self.integer - self.fake_quantized) <= GATE + 1e-9

    def content(self) -> dict[str, Any]:
        """Return all attributes by name, for a class that has more of them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


A = TypeVar("A", bound=Agreement)


def evaluate_beside(
    config: Config,
    detector: nn.Module,
    run_checkpoint_: Callable[[], None],
    run_exported_: Callable[[], None],
    num_bytes: tuple[int, int],
    conclude: Callable[[Any, Agreement], A],
) -> A:
    """Evaluate a checkpoint and what was exported from it on ``data.test`` over all ranks.

    Every rank must call it; all get the same result.

    Args:
        config: As `dq.detector.config.read.finish` returns it.
        detector: On the CPU; its methods are changed in place.
        run_checkpoint_: Makes the detector round as the checkpoint says.
        run_exported_: Makes it run the exported file.
        num_bytes: Size of the exported network, and of the same in float.
        conclude: Called on the main rank with the data set and what was found; adds to it.
    """
    dataset = dataset_of(config, "test", test_mode=True)
    workers = evaluation_workers(config, "test")
    found = []
    for run_ in (run_checkpoint_, run_exported_):
        run_()
        found.append(detect(detector, dataset, device=torch.device("cpu"), workers=workers))
    return on_main_rank(lambda: conclude(dataset, _agreement(config, dataset, found, num_bytes)))


def _agreement(
    config: Config, dataset: Any, found: list[list[Any] | None], num_bytes: tuple[int, int]
) -> Agreement:
    """Return what two evaluations found, of the checkpoint and of the exported file.

    Of several data sets it is the metric of the one on which the two differ most. Values are shares
    of 1, whatever mmdet counts in.
    """
    expected, exported = found
    assert expected is not None
    assert exported is not None
    settings = config.get("evaluation") or {}
    fake, metrics = score(dataset, expected, settings), score(dataset, exported, settings)
    shares = {
        name: (as_share(name, fake[name]), as_share(name, metrics.get(name, 0.0)))
        for name in main_metrics(fake)
    }
    name = max(shares, key=lambda name: abs(shares[name][0] - shares[name][1]))
    return Agreement(
        metric=name,
        integer=shares[name][1],
        fake_quantized=shares[name][0],
        metrics=metrics,
        boxes=box_differences(expected, exported),
        bytes_integer=num_bytes[0],
        bytes_float=num_bytes[1],
    )


def refuse_other(exported: Path, said: str | None, checkpoint: Path, sha256: str) -> None:
    """Raise ValueError where a file says that it is of another checkpoint than this one."""
    if said != sha256:
        raise ValueError(f"{exported} was not exported from {checkpoint}; export it again")
