"""The titles in a report's plots name the stage with its own integer format."""

from __future__ import annotations

from pathlib import Path

import pytest

from dq.tracking.record.stage_summary import StageSummary
from dq.tracking.reports.experiments import Experiment
from dq.tracking.reports.report_plots import label_of


@pytest.mark.parametrize(
    ("stage", "bits", "label"),
    [
        ("qat", "W4A8", "W4A8 QAT"),
        ("calibrated", "int8", "int8 calibrated (PTQ)"),
        ("qat", None, "QAT"),
        ("float", "float32", "float"),
    ],
)
def test_a_stage_has_its_integer_format(stage: str, bits: str | None, label: str) -> None:
    summary = StageSummary(stage=stage, key="k", metric="mAP", value=0.5, bits=bits)
    experiment = Experiment(name="a", folder=Path(), stages={stage: summary}, open_stages={})
    assert label_of(experiment, stage) == label


def test_an_unfinished_stage_has_no_format() -> None:
    experiment = Experiment(name="a", folder=Path(), stages={}, open_stages={"qat": "running"})
    assert label_of(experiment, "qat") == "QAT"
