"""What a command says about its control and the float detector that both started from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dq.tracking.record.stage_summary import StageSummary, write_summary
from launcher.report import say_control

ENDED_EARLY = (
    "the float detector was not trained to its end: it gains 2.20 points by training on; give"
    " control/control.pth as --checkpoint with another --work-dir, or train it longer; until then"
    " compare QAT with the control, not with that detector"
)
FLOAT = StageSummary(stage="float", key="f", metric="mAP", value=0.44, sha256="a")
CALIBRATED = StageSummary(
    stage="calibrated", key="c", metric="mAP", value=0.43, sha256="b", parent="a"
)
QAT = StageSummary(stage="qat", key="q", metric="mAP", value=0.45, bits="W4A8")
CONTROL = StageSummary(
    stage="control", key="d", metric="mAP", value=0.462, checkpoint="control.pth", parent="a"
)


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    """Summaries of a float detector, and of one calibrated from it."""
    for summary in (FLOAT, CALIBRATED):
        (tmp_path / summary.stage).mkdir()
        write_summary(tmp_path / summary.stage, summary)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], checkpoint: Path, control: StageSummary) -> list[str]:
    place: Any = SimpleNamespace(environment=SimpleNamespace(is_main=True))
    say_control(place, QAT, control, checkpoint)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("stage", ["float", "calibrated"])
def test_a_float_detector_that_gains_by_training_on_is_told_how_to_go_on(
    work_dir: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    parent = {"float": "a", "calibrated": "b"}[stage]
    lines = said(capsys, work_dir / stage / f"{stage}.pth", replace(CONTROL, parent=parent))
    assert lines == [
        "W4A8 QAT is -1.20 points from the float detector trained on by the same steps (mAP 45.00"
        " and 46.20 %)",
        ENDED_EARLY,
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"value": 0.449},  # Less than a point.
        {"metric": "bbox_mAP"},  # Another metric than that of the float detector.
        {"parent": "z"},  # Another detector was trained in this folder since.
    ],
)
def test_nothing_is_said_of_a_float_detector_that_is_at_its_end_or_another_one(
    work_dir: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any]
) -> None:
    control = replace(CONTROL, **changed)
    for stage in ("float", "calibrated"):
        assert len(said(capsys, work_dir / stage / f"{stage}.pth", control)) == 1


def test_a_checkpoint_from_elsewhere_has_no_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(said(capsys, tmp_path / "published.pth", CONTROL)) == 1
