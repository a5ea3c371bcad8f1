"""An experiment's last measured speed: its export's, or its exported model's evaluation."""

from __future__ import annotations

import os
from pathlib import Path

from dq.tracking.record.json_file import write_json
from dq.tracking.record.latency import read_times_as_fast, write_latency


def latency(median: float) -> dict[str, object]:
    return {"engine": "Engine 1.0", "times_as_fast": {"low": 0.0, "median": median, "high": 9.0}}


def test_the_later_one_counts_and_an_unreadable_one_does_not(tmp_path: Path) -> None:
    assert read_times_as_fast(tmp_path) is None
    (tmp_path / "export").mkdir()
    write_latency(tmp_path / "export", "net.onnx", latency(2.0))
    assert read_times_as_fast(tmp_path) == 2.0
    summary = tmp_path / "eval_onnxruntime/summary.json"
    summary.parent.mkdir()
    write_json(summary, {"metric": "mAP", "latency": latency(3.0)})
    os.utime(summary, (2e9, 2e9))
    assert read_times_as_fast(tmp_path) == 3.0
    os.utime(summary, (1e9, 1e9))
    assert read_times_as_fast(tmp_path) == 2.0
    os.utime(summary, (2e9, 2e9))
    for text in ("", "[]", "{}", '{"latency": null}', '{"latency": {"times_as_fast": 1}}'):
        summary.write_text(text)
        os.utime(summary, (2e9, 2e9))
        assert read_times_as_fast(tmp_path) == 2.0
