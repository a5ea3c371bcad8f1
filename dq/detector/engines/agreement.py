"""An exported file's metric beside the fake-quantized detector's, and the gate between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcv import Config

from dq.detector.evaluation.box_differences import BoxDifferences, box_differences
from dq.detector.evaluation.evaluate import as_share, main_metrics, score

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
        return is_within_gate(self.integer, self.fake_quantized)


def is_within_gate(one: float, other: float) -> bool:
    """Say whether two metrics, 0 to 1, are within `GATE` of each other."""
    return abs(one - other) <= GATE + 1e-9


def measured_on(
    config: Config, dataset: Any, expected: list[Any], found: list[Any]
) -> tuple[str, float, float, dict[str, float], BoxDifferences]:
    """Return the metric's name, its value fake-quantized and exported, all metrics, the boxes.

    Of several data sets it is the metric of the one on which the two differ most. Values are shares
    of 1, whatever mmdet counts in.
    """
    settings = config.get("evaluation") or {}
    fake, metrics = score(dataset, expected, settings), score(dataset, found, settings)
    shares = {
        name: (as_share(name, fake[name]), as_share(name, metrics.get(name, 0.0)))
        for name in main_metrics(fake)
    }
    name = max(shares, key=lambda name: abs(shares[name][0] - shares[name][1]))
    return name, *shares[name], metrics, box_differences(expected, found)


def refuse_other(exported: Path, said: str | None, checkpoint: Path, sha256: str) -> None:
    """Raise ValueError where a file says that it is of another checkpoint than this one."""
    if said != sha256:
        raise ValueError(f"{exported} was not exported from {checkpoint}; export it again")
