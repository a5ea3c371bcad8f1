"""Experiments that share a float detector: the checkpoint's checksum says so, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from dq.tracking.record.stage_summary import StageSummary
from dq.tracking.reports.experiments import Experiment, with_shared_float


def experiment(name: str, stage: str, **more: str | None) -> Experiment:
    summary = StageSummary(stage=stage, key="k", metric="mAP", value=0.5, **more)  # type: ignore[arg-type]
    return Experiment(name=name, folder=Path(name), stages={stage: summary}, open_stages={})


@pytest.mark.parametrize(("sha256", "shared"), [("0f", True), (None, False)])
def test_a_float_result_is_shared_by_the_checksum_of_its_checkpoint(
    sha256: str | None, shared: bool
) -> None:
    source = experiment("a", "float", sha256=sha256)
    _, found = with_shared_float([source, experiment("b", "qat", parent=sha256)])
    assert ("float" in found.stages) is shared
