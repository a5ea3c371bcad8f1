"""The comparison as a W&B report: its content, and the error if it cannot be sent."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dq.tracking.record.run import Run, write_run
from dq.tracking.reports.experiments import find_experiments
from dq.tracking.reports.wandb_report import runs_of
from tests.launcher.conftest import Launch
from tests.launcher.conftest import launch as launch
from tests.tracking.reports.test_comparison import make
from tests.tracking.wandb_stub import stub_server


def test_the_report_holds_table_settings_and_curves_of_these_runs_alone(
    tmp_path: Path, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra `report` is not installed")
    for name, gain, bits in (("a", 0.0, 8), ("b", 0.01, 4)):
        make(tmp_path / name, gain, bits=bits)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    with stub_server() as stub:
        monkeypatch.setenv("WANDB_BASE_URL", stub.url)
        code, out, err = launch("compare", tmp_path / "a", tmp_path / "b", "--report")
        assert code == 0, err
        sent = [q["variables"] for q in stub.queries if "upsertView" in q.get("query", "")]
    assert len(sent) == 1
    assert sent[0]["projectName"] == "dq-launcher"
    assert sent[0]["displayName"] == "b against a"
    spec = json.dumps(json.loads(sent[0]["spec"]))
    assert "Acc 8bit QAT" in spec
    assert "`bits`" in spec
    for name in ("train/loss", "val/mAP", "quantizers/sqnr_mean"):
        assert name in spec
    for experiment in find_experiments([tmp_path]):
        assert f"{experiment.name}-qat" in spec
    assert "reports" in out


def test_the_control_has_curves_too(tmp_path: Path) -> None:
    make(tmp_path / "a")
    write_run(tmp_path / "a/control", Run(id="a-control", experiment="a", stage="control"))
    found = [run.id for run in runs_of(find_experiments([tmp_path]))]
    assert found == ["a-float", "a-calibrated", "a-control", "a-qat"]


def test_without_the_extra_it_is_one_line(
    tmp_path: Path, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    code, _, err = launch("compare", tmp_path / "a", "--report")
    assert code == 2
    assert err == (
        "error: a W&B report needs wandb-workspaces: pip install 'dq-launcher[report]'\n"
    )
