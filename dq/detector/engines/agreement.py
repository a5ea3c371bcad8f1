"""Compare the metric of an exported file with the fake-quantized detector's: the gate."""

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

# Largest accepted difference of the metric (0 to 1): a tenth of a percentage point.
GATE = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The evaluations of an exported file and of its checkpoint.

    Attributes:
        metric: Name of the metric.
        integer: Its value for the exported file, 0 to 1.
        fake_quantized: Its value for the fake-quantized detector, 0 to 1.
        metrics: All metrics of the exported file.
        boxes: Differences of the detections; the fake-quantized detector is the first.
        bytes_integer: Size of the exported network in bytes.
        bytes_float: Size of the same network in float.
        cause: The likely reason why the gate was missed; empty if it was passed.
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
        """Return all attributes by name, to construct a subclass."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


A = TypeVar("A", bound=Agreement)


def evaluate_both(
    config: Config,
    detector: nn.Module,
    run_checkpoint_: Callable[[], None],
    run_exported_: Callable[[], None],
    num_bytes: tuple[int, int],
    conclude: Callable[[Any, Agreement], A],
) -> A:
    """Evaluate a checkpoint and the file exported from it on ``data.test``, over all ranks.

    Every rank must call it; all get the same result.

    Args:
        config: Result of `dq.detector.config.read.finish`.
        detector: On the CPU; its methods are changed in place.
        run_checkpoint_: Makes the detector fake-quantize as the checkpoint says.
        run_exported_: Makes it run the exported file.
        num_bytes: Size of the exported network, and of the same network in float.
        conclude: Called on the main rank with the data set and the result; returns the result with
            further attributes.
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
    """Return the agreement of two evaluations: of the checkpoint and of the exported file.

    With several data sets, the metric is that of the data set on which the two differ most. Values
    are between 0 and 1, even if mmdet gives percent.
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
    """Raise ValueError if a file was exported from another checkpoint than this one."""
    if said != sha256:
        raise ValueError(f"{exported} was not exported from {checkpoint}; export it again")
