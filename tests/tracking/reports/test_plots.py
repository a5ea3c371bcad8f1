"""The plots of a run: their time grows with the log, not with its square."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dq.tracking.record.stage_summary import StageSummary
from dq.tracking.reports import plots


class Counted(list[dict[str, Any]]):
    """Rows that count how often they are gone through."""

    passes = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.passes += 1
        return super().__iter__()


def test_a_long_log_is_gone_through_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"mode": "train", "epoch": 1, "iter": n + 1, "loss": 1.0} for n in range(50)]
    (tmp_path / "float").mkdir()
    text = "\n".join(map(json.dumps, [*rows, {"mode": "val", "epoch": 1, "mAP": 0.5}]))
    (tmp_path / "float/1.log.json").write_text(text + "\n{cut")
    logs = {stage: Counted(plots.read_log(tmp_path / stage)) for stage in plots.STAGES}
    assert [len(log) for log in logs.values()] == [51, 0]
    monkeypatch.setattr(plots, "read_log", lambda folder: logs[folder.name])
    summary = StageSummary(stage="float", key="k", metric="mAP", value=0.5)
    (path,) = plots.write_plots(tmp_path / "plots", tmp_path, {"float": summary})
    assert path.stat().st_size > 0
    assert logs["float"].passes < 10
