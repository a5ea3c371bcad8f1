"""Two jobs in one work dir: one runs and the other is refused; the lock of a dead job is free."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks.two_jobs import two_at_once
from dq.one_writer.lock import hold
from launcher.cli import COMMANDS, build_parsers
from launcher.work_dir import WRITTEN
from tests.launcher.conftest import Launch
from tests.launcher.failures.strikes import run_ranks_alone
from tests.launcher.failures.test_faults import config_with, hook, must_have_ended, record
from tests.processes.warm import WarmProcess


def start(words: Sequence[str], output: Path) -> Callable[[], int]:
    with output.open("wb") as file:
        process = WarmProcess(list(words), environ=os.environ, output=file)
    return lambda: process.wait(120.0)


def test_every_command_with_a_work_dir_says_what_it_writes() -> None:
    with_one = {
        name
        for name, parser in build_parsers()[1].items()
        if "--work-dir" in parser._option_string_actions
    }
    assert with_one - {"submit"} == set(WRITTEN)
    assert set(WRITTEN) <= set(COMMANDS)


@pytest.mark.slow
def test_one_of_two_jobs_runs_and_no_file_is_damaged(config: Path, tmp_path: Path) -> None:
    found = two_at_once(["train", str(config)], tmp_path / "w", start)
    assert found.faults == (), found.outputs


@pytest.mark.slow
def test_the_second_job_is_refused_on_all_ranks_in_one_line(config: Path, tmp_path: Path) -> None:
    lock = hold(tmp_path / "w")
    try:
        words = ["train", config, "--work-dir", tmp_path / "w"]
        ending = run_ranks_alone(2, *words, folder=tmp_path)
    finally:
        lock.release()
    must_have_ended(ending)
    assert ending.codes == [2, 2]
    assert f"is being written by process {os.getpid()} on" in ending.errors[0]
    assert sorted(os.listdir(tmp_path / "w")) == ["logs"]
    record("a second job in the same work dir", "nothing", ending)


@pytest.mark.slow
def test_beside_a_training_only_what_writes_elsewhere_runs_and_its_death_holds_nobody_up(
    launch: Launch, config: Path, float_checkpoint: Path, tmp_path: Path
) -> None:
    more = hook(tmp_path, "delay", rank=0, step=3, argument=120.0)
    path, work = config_with(config, tmp_path, more), tmp_path / "w"
    words = ["train", str(path), "--work-dir", str(work), "--no-validate"]
    with (tmp_path / "out.txt").open("wb") as file:
        training = WarmProcess(words, environ=os.environ, output=file)
    try:
        while not list(tmp_path.glob("struck*")):
            assert training.poll() is None, (tmp_path / "out.txt").read_text()
            time.sleep(0.1)
        where = ("--checkpoint", float_checkpoint, "--work-dir", work)
        code, _, err = launch("eval", config, *where)
        assert code == 0, err
        for command in ("train", "run"):
            code, _, err = launch(command, config, "--work-dir", work)
            assert code == 2
            assert f"is being written by process {training.pid} on" in err
        assert (work / "float/step_2.pth").is_file()
    finally:
        training.end()
    assert training.returncode == -signal.SIGKILL
    left = work / "float/.step_4.pth.0123456789abcdef.tmp"
    left.write_text("half")
    code, _, err = launch(*words, "--resume")
    assert code == 0, err
    assert not [p for p in work.rglob("*") if p.name.startswith(".")]
    assert json.loads((work / "float/summary.json").read_text())["stage"] == "float"
