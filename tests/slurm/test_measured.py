"""A job's results are told apart from earlier ones in its folder, without file times."""

from __future__ import annotations

import json
import os
from pathlib import Path

from slurm.measured import last_metrics, result_digests


def write(folder: Path, name: str, *rows: object) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    # Its time is older than anything else.
    os.utime(path, (1, 1))
    return path


TRAIN = {"kind": "train", "step": 3, "epoch": 0.5, "loss": 1.25, "time": 9.0}
VAL = {"kind": "val", "step": 6, "epoch": 1, "mAP": 0.5}


def test_earlier_results_do_not_count(tmp_path: Path) -> None:
    assert result_digests(tmp_path, "") == {}
    write(tmp_path, "float/summary.json", {"metric": "mAP", "value": 0.25})
    write(tmp_path, "float/metrics.jsonl", TRAIN)
    before = result_digests(tmp_path, "")
    assert set(before) == {"float/summary.json", "float/metrics.jsonl"}
    assert last_metrics(tmp_path, "", before) == ""
    assert last_metrics(tmp_path, "float", before) == ""
    write(tmp_path, "float/metrics.jsonl", TRAIN, VAL, {"kind": "proof", "step": 6})
    assert last_metrics(tmp_path, "float", before) == "epoch 1 step 6 mAP 0.5"
    assert last_metrics(tmp_path, "", before) == "float epoch 1 step 6 mAP 0.5"
    write(tmp_path, "float/summary.json", {"metric": "mAP", "value": 0.75})
    assert last_metrics(tmp_path, "float", before) == "mAP 75.0 %"
    write(tmp_path, "qat/metrics.jsonl", TRAIN)
    assert last_metrics(tmp_path, "", before) == "qat epoch 0.5 step 3 loss 1.25"


def test_unreadable_files_have_no_result(tmp_path: Path) -> None:
    (write(tmp_path, "qat/summary.json")).write_text("{")
    (write(tmp_path, "qat/metrics.jsonl")).write_text('{"kind": "train", "step"')
    assert last_metrics(tmp_path, "qat", {}) == ""
