"""The state of a run of every kind: running, finished, stopped, failed, killed, not begun."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dq.one_writer.lock import hold
from dq.tracking.live.state import RunState, reader_of
from dq.tracking.live.terminal import as_json, panel, plain, print_once
from dq.tracking.record.run import Run, read_run, write_run
from dq.tracking.record.stage_summary import StageSummary, write_summary
from dq.tracking.tracker import FolderTracker, Resumed

RUN = Run(
    id="abcd1234",
    experiment="exp",
    stage="qat",
    source={"world_size": 2, "device": "cpu", "bits": "int8"},
    started=time.time(),
)


def train(tracker: FolderTracker, first: int, last: int, of: int) -> None:
    """Log steps that took half a second each."""
    tracker.begin_training(first, of)
    for step in range(first + 1, last + 1):
        row = {"epoch": step / 10, "loss": 9.0 / step, "lr": 0.1, "images_per_s": 16.0}
        tracker.log("train", step, {**row, "phase": "train", "bad_images": 3})


def timed(folder: Path, seconds: float) -> None:
    """Set the times of all rows as if each step had taken so long and the last one ended now."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["time"] = time.time() - seconds * (len(rows) - 1 - number)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def shown(state: RunState) -> str:
    """Return what is printed; rich prints the same words, in a narrow terminal too."""
    from rich.console import Console

    text = plain(state)
    for width in (160, 60):
        console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        console.print(panel(state))
        drawn = re.sub(r"[\s│]+", "", console.export_text())
        for line in text.splitlines()[1:]:
            assert all(word in drawn for word in line.split() if len(word) < 20), (line, drawn)
    assert json.loads(as_json(state))["folder"] == state.folder
    return text


@pytest.mark.parametrize(
    ("encoding", "bar"), [("ascii", "######.........."), ("utf-8", "██████░░")]
)
def test_a_terminal_without_blocks(tmp_path: Path, encoding: str, bar: str) -> None:
    tracker = FolderTracker(tmp_path / "qat", RUN)
    train(tracker, 0, 20, of=80)
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_once(reader_of(tmp_path).read(), stream)
    stream.flush()
    assert bar in stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def test_a_training_that_runs(tmp_path: Path) -> None:
    tracker = FolderTracker(tmp_path / "qat", RUN)
    train(tracker, 0, 20, of=80)
    timed(tmp_path / "qat", 0.5)
    reader = reader_of(tmp_path)
    state = reader.read()
    assert (state.state, state.current, state.is_alive) == ("running", "qat", True)
    assert state.progress is not None
    assert state.progress.to_go_s == pytest.approx(30.0, abs=2.0)
    text = shown(state)
    assert "25 %  step 20 of 80, epoch 2.00" in text
    assert "3 images could not be read" in text
    tracker.log("val", 20, {"epoch": 2.0, "bbox_mAP": 0.515, "bbox_mAP_50": 0.7})
    tracker.log("straggler", 20, {"phase": "loading", "rank": 1, "seconds": 3.0, "others": 0.5})
    tracker.log("straggler", 20, {"phase": "loading", "rank": 1, "seconds": 4.0, "others": 0.5})
    tracker.log("runaway", 20, {"what": "loss", "measure": 9.0, "line": "the loss\nis [red]high"})
    tracker.log("proof", 20, {"digest": "d"})
    row = {"name": "a", "clipped": 0.25, "sqnr": None, "oscillating": 0.125}
    tracker.table(20, 2, "epoch", [row, {**row, "name": "b", "sqnr": 12.5, "clipped": 0.0}])
    text = shown(reader.read())
    for words in (
        "bbox_mAP  51.50 % (epoch 2); best 51.50 % (epoch 2)",
        "rank 1 at loading: 4.0 s, the others 0.5 s (step 20, 2 reports)",
        "the loss is [red]high",
        "the same ranges on all at step 20",
        "2 quantizers at epoch 2, median SQNR 12.5 dB",
        "clip most: a 25 %",
        "at most 12 % of a layer",
    ):
        assert words in text


def test_half_a_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    tracker = FolderTracker(tmp_path / "qat", RUN)
    train(tracker, 0, 3, of=10)
    reader = reader_of(tmp_path)
    line = b'{"kind":"train","step":4,"time":1.0,"epoch":0.4,"loss":1.0}\n'
    with (tmp_path / "qat/metrics.jsonl").open("ab", buffering=0) as file:
        file.write(b'{"kind": "tr\n\x00\xff\n[1]\n7\n{"kind":"train"}\n' + line[:30])
        assert reader.read().progress.step == 3  # type: ignore[union-attr]
        file.write(line[30:])
        found = reader.read().progress
    assert found is not None
    assert (found.step, len(found.losses)) == (4, 4)
    (tmp_path / "qat/quantizers.jsonl").write_bytes(b'{"rows": [[1')
    assert reader.read().health is None
    (tmp_path / "qat/quantizers.jsonl").write_text('{"rows": 3}\n{"columns": [], "rows": [5]}\n')
    assert reader.read().health is None


def test_a_resumed_training_shows_each_step_once_and_no_pause_counts(tmp_path: Path) -> None:
    first = FolderTracker(tmp_path / "qat", RUN)
    train(first, 0, 8, of=20)
    first.finish(75)
    reader = reader_of(tmp_path)
    assert "stopped by a signal: --resume continues it" in shown(reader.read())
    rows = (tmp_path / "qat/metrics.jsonl").read_text().splitlines()
    old = [json.dumps({**json.loads(row), "time": 5.0}) for row in rows]
    (tmp_path / "qat/metrics.jsonl").write_text("\n".join(old) + "\n")
    second = FolderTracker(tmp_path / "qat", RUN, resumed=Resumed(step=6))
    train(second, 6, 9, of=20)
    state = reader.read()
    assert state.progress is not None
    assert (state.progress.step, len(state.progress.losses)) == (9, 9)
    assert state.progress.to_go_s is not None
    assert state.progress.to_go_s < 5.0


def test_stages_that_have_ended(tmp_path: Path) -> None:
    for number, (stage, code) in enumerate({"float": 0, "calibrated": 0, "qat": 1}.items()):
        run = replace(RUN, stage=stage, started=100.0 + number)
        tracker = FolderTracker(tmp_path / stage, run)
        tracker.log("test", 4, {"mAP": 0.5})
        error = "rank 0: no space [/tmp] token=ghp_" + "a" * 36
        tracker.finish(code, None if code == 0 else error)
        if code == 0:
            done = StageSummary(stage=stage, key="k", metric="mAP", value=0.625)
            write_summary(tmp_path / stage, done)
    state = reader_of(tmp_path).read()
    assert [each.name for each in state.stages] == ["float", "calibrated", "qat"]
    assert (state.state, state.is_alive) == ("failed", False)
    text = shown(state)
    assert text.count("mAP 62.50 %") == 2
    assert "no space [/tmp]" in text
    assert "ghp_" not in text
    # A folder of one stage shows that stage.
    assert reader_of(tmp_path / "calibrated").read().current == "calibrated"
    # The evaluation of an exported model has another summary, and no run.
    (tmp_path / "eval_openvino").mkdir()
    result = {"metric": "mAP", "integer": 0.5, "fake_quantized": 0.5}
    (tmp_path / "eval_openvino/summary.json").write_text(json.dumps(result))
    states = {each.name: each for each in reader_of(tmp_path).read().stages}
    assert (states["eval_openvino"].state, states["eval_openvino"].value) == ("finished", 0.5)


def test_a_run_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from dq.tracking.record.run import Run\n"
        "from dq.tracking.tracker import FolderTracker\n"
        "tracker = FolderTracker(Path(sys.argv[1]), Run(id='a', experiment='e', stage='float'))\n"
        "tracker.begin_training(0, 10); tracker.log('train', 4, {'loss': 1.0})\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "float")], check=False)
    state = reader_of(tmp_path).read()
    assert (state.state, state.is_alive) == ("died", False)
    assert "its process is gone" in shown(state)
    run = read_run(tmp_path / "float")
    assert run is not None
    # On another machine that is not visible; an hour without a row is.
    elsewhere = {**run.process, "host": "other", "boot": "x"}
    write_run(tmp_path / "float", replace(run, process=elsewhere))
    assert reader_of(tmp_path).read().state == "running"
    assert reader_of(tmp_path).read(now=time.time() + 7300).state == "silent for 2 h"


def test_a_run_that_has_not_begun(tmp_path: Path) -> None:
    for trace in ("logs", "submissions"):
        (tmp_path / trace / trace).mkdir(parents=True)
        (tmp_path / trace / trace / "rank_0.log").touch()
        assert "not begun" in shown(reader_of(tmp_path / trace).read())
    lock = hold(tmp_path / "held")
    try:
        assert reader_of(tmp_path / "held").read().is_alive
    finally:
        lock.release()
    # Ranks may wait for each other for minutes, but not for ever; a job waits for its turn.
    for trace, waits in (("logs", False), ("submissions", True)):
        os.utime(tmp_path / trace / trace / "rank_0.log", (1.0, 1.0))
        state = reader_of(tmp_path / trace).read()
        assert (state.state, state.is_alive) == ("not begun", waits)
        assert ("nothing seems to run" in shown(state)) is not waits


def test_a_run_that_was_killed_before_its_first_record(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from dq.one_writer.lock import hold\n"
        "hold(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "w")], check=False)
    state = reader_of(tmp_path / "w").read()
    assert (state.state, state.is_alive) == ("died", False)
    assert "died before a stage had written a record" in shown(state)


def test_damaged_records_are_named(tmp_path: Path) -> None:
    (tmp_path / "qat").mkdir()
    for content in ("", "{", "[]", '{"id": 3}', '{"id":"a","experiment":"b","stage":"qat"}'):
        (tmp_path / "qat/run.json").write_text(content)
        assert shown(reader_of(tmp_path).read())
    for part in ({"source": 3}, {"process": []}, {"training": 7}, {"started": "x"}, {"config": 1}):
        (tmp_path / "qat/run.json").write_text(json.dumps({**asdict(RUN), **part}))
        assert shown(reader_of(tmp_path).read())


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("nowhere", "nowhere is not a folder; give the --work-dir of a run"),
        ("file", "file is not a folder"),
        ("empty", "has no run in it"),
        (
            "many",
            r"has 6 runs in it \(a0, a1, a2, a3, \.\.\.\); give one of them, .*many/a0,",
        ),
    ],
)
def test_a_folder_that_is_no_run(tmp_path: Path, folder: str, words: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty/photos").mkdir(parents=True)
    for number in range(6):
        write_run(tmp_path / f"many/a{number}/qat", RUN)
    if folder == "empty":
        # One that vanishes while it is watched.
        (tmp_path / "w/logs").mkdir(parents=True)
        reader = reader_of(tmp_path / "w")
        shutil.rmtree(tmp_path / "w")
        with pytest.raises(ValueError, match="w is gone"):
            reader.read()
    with pytest.raises(ValueError, match=words) as caught:
        reader_of(tmp_path / folder)
    assert "\n" not in str(caught.value)
