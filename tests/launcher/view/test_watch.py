"""``launcher watch`` and ``launcher compare --serve`` as a user starts and ends them."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from dq.tracking.record.run import Run
from dq.tracking.tracker import FolderTracker
from tests.launcher.conftest import ROOT, Launch
from tests.launcher.failures.injected import fail


@pytest.fixture
def tracker(tmp_path: Path) -> FolderTracker:
    """The tracker of a run that this process writes, so it lives."""
    tracker = FolderTracker(tmp_path / "w/qat", Run(id="a", experiment="w", stage="qat"))
    tracker.begin_training(0, 10)
    tracker.log("train", 4, {"loss": 1.5, "epoch": 0.4})
    return tracker


def start(*words: object, terminal: int | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launcher", *map(str, words)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if terminal is None else terminal,
        stderr=subprocess.PIPE if terminal is None else terminal,
        text=True,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "PYTHONUNBUFFERED": "1"},
        # Tests that were started in the background of a shell ignore Ctrl-C, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_once_and_json(launch: Launch, tracker: FolderTracker, tmp_path: Path) -> None:
    code, out, err = launch("watch", tmp_path / "w", "--once")
    assert (code, err) == (0, "")
    assert "40 %  step 4 of 10" in out
    code, out, err = launch("watch", tmp_path / "w", "--json")
    assert (code, err) == (0, "")
    state = json.loads(out)
    assert (state["state"], state["progress"]["step"]) == ("running", 4)
    tracker.finish(0)
    # Nothing writes it any more, so it is shown and that is all.
    code, out, err = launch("watch", tmp_path / "w")
    assert (code, err) == (0, "")
    assert "qat: finished" in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("nowhere", "--once"), "nowhere is not a folder"),
        ((".", "--json"), "has no run in it"),
        (("w", "--interval", "0"), "--interval 0 is not a time; give seconds above 0"),
        (("w", "--interval", "nan"), "--interval nan is not a time"),
    ],
)
def test_a_mistake_is_one_line(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...],
    line: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, out, err = launch("watch", *words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert line in err or words[0] == "w"


def test_why_a_stage_has_failed_is_shown(
    launch: Launch, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.stages.float_training.dataset_of", fail)
    words = ("--work-dir", tmp_path / "w", "--wandb", "disabled")
    assert launch("train", config, *words)[0] == 1
    code, out, err = launch("watch", tmp_path / "w", "--once")
    assert (code, err) == (0, "")
    assert "float: failed" in out
    assert "error     injected fault" in out


def test_lines_follow_a_run_to_its_end(tracker: FolderTracker, tmp_path: Path) -> None:
    process = start("watch", tmp_path / "w", "--interval", "0.1")
    assert process.stdout is not None
    seen = ""
    while "step 4 of 10" not in seen:
        seen += process.stdout.readline()
    tracker.log("train", 7, {"loss": 1.25, "epoch": 0.7})
    while "step 7 of 10" not in seen:
        seen += process.stdout.readline()
    tracker.finish(0)
    rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert "qat: finished" in rest


def test_a_terminal_shows_one_picture_and_ctrl_c_ends_it_quietly(
    tracker: FolderTracker, tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    process = start("watch", tmp_path / "w", "--interval", "0.1", terminal=theirs)
    os.close(theirs)
    seen = ""

    def read_until(words: str) -> None:
        nonlocal seen
        end = time.monotonic() + 60
        while words not in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen):
            assert time.monotonic() < end, seen
            if select.select([ours], [], [], 1.0)[0]:
                seen += os.read(ours, 1 << 16).decode(errors="replace")

    read_until("step 4 of 10")
    tracker.log("train", 9, {"loss": 1.0, "epoch": 0.9})
    read_until("step 9 of 10")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    while select.select([ours], [], [], 0.2)[0]:
        try:
            seen += os.read(ours, 1 << 16).decode(errors="replace")
        except OSError:  # The terminal's other end is closed.
            break
    os.close(ours)
    assert "Traceback" not in seen
    assert "rror" not in seen
    assert "\x1b[?25h" in seen  # The cursor is shown again.


def test_serve_ends_quietly_and_a_port_in_use_is_one_line(
    launch: Launch, tracker: FolderTracker, tmp_path: Path
) -> None:
    process = start("compare", tmp_path / "w", "--serve", "--port", "0", "--interval", "0.2")
    assert process.stdout is not None
    seen = ""
    while (found := re.search(r"http://127\.0\.0\.1:(\d+)", seen)) is None:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    with urllib.request.urlopen(found[0], timeout=60) as answer:
        assert "Training" in answer.read().decode()
    code, _, err = launch("compare", tmp_path / "w", "--serve", "--port", found[1])
    assert code == 2
    assert err == f"error: --port {found[1]} is in use; give another, or 0 for any\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    for words in (("--port", "80"), ("--interval", "3")):
        code, _, err = launch("compare", tmp_path / "w", *words)
        assert (code, err) == (2, f"error: {words[0]} goes with --serve; give that too, or leave"
                                  " it out\n")  # fmt: skip
