"""The files of a run: one history over kills and resuming, best values, no loss, clear errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dq.tracking.record.rows import (
    METRICS,
    QUANTIZERS,
    RowFile,
    read_rows,
    rows_of_kind,
    sample_rows,
)
from dq.tracking.record.run import Run, flattened, new_run_id, read_run
from dq.tracking.tracker import FolderTracker, Resumed

ROOT = Path(__file__).resolve().parents[2]
RUN = Run(id="abcd1234", experiment="exp", stage="qat")


def steps(folder: Path, kind: str) -> list[int]:
    return [row["step"] for row in rows_of_kind(folder / METRICS, kind)]


def test_a_resumed_run_has_one_history(tmp_path: Path) -> None:
    first = FolderTracker(tmp_path, RUN)
    for step in range(1, 9):
        first.log("train", step, {"loss": 1.0})
    first.log("val", 4, {"mAP": 0.5})
    first.log("val", 8, {"mAP": 0.4})
    first.log("proof", 8, {"digest": "d"})
    first.table(8, 2, "epoch", [{"name": "a"}])
    second = FolderTracker(tmp_path, RUN, resumed=Resumed(step=6))
    assert second.run is not None
    assert second.run.best["mAP"]["value"] == 0.5
    for step in range(7, 11):
        second.log("train", step, {"loss": 2.0})
    second.log("val", 8, {"mAP": 0.4})
    second.finish(0)
    assert steps(tmp_path, "train") == list(range(1, 11))
    assert steps(tmp_path, "val") == [4, 8]
    assert not steps(tmp_path, "proof")
    assert not list(read_rows(tmp_path / "quantizers.jsonl"))
    found = read_run(tmp_path)
    assert found is not None
    assert (found.id, found.status, found.exit_code) == (RUN.id, "finished", 0)


@pytest.mark.parametrize(("inside", "left"), [(True, []), (False, [6])])
def test_validation_is_repeated_only_from_a_checkpoint_before_it(
    tmp_path: Path, inside: bool, left: list[int]
) -> None:
    first = FolderTracker(tmp_path, RUN)
    first.log("train", 6, {"loss": 1.0})
    first.log("val", 6, {"mAP": 0.5})
    first.log("test", 6, {"mAP": 0.5})
    FolderTracker(tmp_path, RUN, resumed=Resumed(step=6, inside_epoch=inside))
    assert steps(tmp_path, "train") == [6]
    assert steps(tmp_path, "val") == left
    assert steps(tmp_path, "test") == []


def test_a_new_run_keeps_the_rows_of_the_old_one(tmp_path: Path) -> None:
    FolderTracker(tmp_path, RUN).log("train", 1, {"loss": 1.0})
    FolderTracker(tmp_path, RUN).log("train", 2, {"loss": 1.0})
    assert steps(tmp_path, "train") == [2]
    assert [r["step"] for r in read_rows(tmp_path / "metrics.previous.jsonl")] == [1]


def test_a_kill_loses_no_row(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from dq.tracking.record.rows import RowFile\n"
        "file = RowFile(Path(sys.argv[1]))\n"
        "for i in range(10**9):\n"
        "    file.write({'kind': 'train', 'step': i}); print(i, flush=True)"
    )
    path = tmp_path / METRICS
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    said = [child.stdout.readline() for _ in range(50)]
    os.kill(child.pid, signal.SIGKILL)
    rest = child.stdout.read().splitlines()
    child.wait()
    last = int((said + rest)[-1]) if (said + rest)[-1].strip() else 49
    assert [row["step"] for row in read_rows(path)][: last + 1] == list(range(last + 1))


def test_a_cut_line_does_not_damage_others(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    path.write_text('{"kind":"train","step":1}\n{"kind":"tra')
    RowFile(path).write({"kind": "train", "step": 2, "loss": float("nan")})
    assert list(read_rows(path)) == [
        {"kind": "train", "step": 1},
        {"kind": "train", "step": 2, "loss": None},
    ]


def test_a_full_disk_is_logged_once_and_the_run_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = FolderTracker(tmp_path, RUN)
    tracker.metrics._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    for step in range(5):
        tracker.log("train", step, {"loss": 1.0})
    assert caplog.text.count("No space left") == 1
    tracker.finish(0)


def test_a_table_that_cannot_be_written_is_logged_and_the_next_one_is_tried(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = FolderTracker(tmp_path, RUN)
    (tmp_path / QUANTIZERS).mkdir()
    tracker.table(1, 1, "epoch", [{"name": "a", "sqnr": 30.0}])
    assert f"{tmp_path / QUANTIZERS} cannot be written" in caplog.messages[-1]
    (tmp_path / QUANTIZERS).rmdir()
    tracker.table(2, 2, "epoch", [{"name": "a", "sqnr": 30.0}])
    assert [row["step"] for row in read_rows(tmp_path / QUANTIZERS)] == [2]
    tracker.finish(0)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "qat").write_text("a file")
    with pytest.raises(ValueError, match=r"cannot be written: .*; choose another --work-dir"):
        FolderTracker(tmp_path / "qat", RUN)


def test_sampling_a_large_file_is_quick_ordered_and_ends_with_the_last(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    lines = (json.dumps({"kind": "train", "step": i, "loss": 1 / (i + 1)}) for i in range(50000))
    path.write_text("\n".join(lines) + "\n")
    found = [row["step"] for row in sample_rows(path, 100)]
    assert found == sorted(set(found))
    assert 90 <= len(found) <= 101
    assert found[0] == 0
    assert found[-1] == 49999
    assert len(sample_rows(path, 100, whole_below=1 << 30)) <= 100


def test_run_ids_touch_no_generator_and_differ() -> None:
    import random

    state = random.getstate()
    assert len({new_run_id() for _ in range(100)}) == 100
    assert random.getstate() == state


def test_configs_are_flattened() -> None:
    values = {"a": {"b": 1, "c": (1, 2)}, "d": [{"e": 2}], "f": []}
    assert flattened(values) == {"a.b": 1, "a.c": [1, 2], "d.0.e": 2, "f": []}
