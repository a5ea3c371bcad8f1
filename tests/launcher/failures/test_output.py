"""Output, logs and files that cannot be written: a full disk, a pipe without a reader, a device."""

from __future__ import annotations

import io
import logging
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import pytest
import torch
from mmcv.runner.hooks.logger import TextLoggerHook

from dq.detector.hooks.text_log import spare_training_
from dq.dist.files.checkpoint import save_checkpoint
from dq.dist.watch.watchdog import Watchdog
from dq.tracking.record.rows import RowFile
from dq.whole_file import write_whole
from launcher.cli import main
from launcher.command_line.json_result import json_result
from launcher.command_line.written import write_text
from launcher.logs import logging_to
from launcher.output import READER_LEFT, OutputLostError, guarded_output, output_may_fail
from tests.launcher.conftest import rank_environments
from tests.processes.warm import WarmProcess

FULL = Path("/dev/full")
NO_ROOM = "No space left on device"


def full() -> TextIO:
    """Return a stream to a disk without room."""
    return FULL.open("w", encoding="utf-8")


def unread() -> TextIO:
    """Return a stream into a pipe whose reader has ended."""
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w", encoding="utf-8")


STREAMS = {NO_ROOM: full, "Broken pipe": unread}


@pytest.fixture(params=STREAMS)
def failing(request: pytest.FixtureRequest) -> str:
    """Return how standard output is to fail."""
    return str(request.param)


@pytest.mark.parametrize("words", [["configs"], ["configs", "--debug"], ["completion", "bash"]])
def test_a_command_whose_result_is_its_output_ends(
    words: list[str], failing: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "stdout", STREAMS[failing]())
    code = main(words)
    said = capsys.readouterr().err.splitlines()
    if failing == NO_ROOM:
        assert code == 1
        assert said[0].startswith(f"error: standard output cannot be written: {NO_ROOM}")
        assert len(said) == 1 or "--debug" in words
    else:
        assert (code, said) == (READER_LEFT, [])
    assert isinstance(sys.stdout, io.TextIOWrapper)  # The former one is back.


def test_a_command_that_computes_continues_and_says_so_once(
    failing: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "stdout", STREAMS[failing]())
    caplog.set_level(logging.INFO)
    with guarded_output(), output_may_fail():
        handler = logging.StreamHandler(sys.stdout)
        logging.getLogger("dq").addHandler(handler)
        for number in range(3):
            print(number, flush=True)
            logging.getLogger("dq").info("x" * 20000)
        logging.getLogger("dq").removeHandler(handler)
    line = f"standard output cannot be written: {failing}; the command continues"
    assert capsys.readouterr().err == f"warning: {line}\n"
    assert [r.getMessage() for r in caplog.records if r.name == "launcher.output"] == [line]


@pytest.mark.parametrize("make", STREAMS.values())
def test_a_standard_error_that_fails_is_no_error(
    make: Callable[[], TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", make())
    with pytest.raises(SystemExit, match="2"):
        main(["train", "x.py", "--bogus"])


def test_closed_streams_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["configs"]) == 0
    with pytest.raises(SystemExit, match="2"):
        main(["train", "x.py", "--bogus"])


def test_characters_that_the_terminal_does_not_have_are_escaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with guarded_output():
        print("80.1 ± 1.1 → läufe")
    assert raw.getvalue() == b"80.1 \\xb1 1.1 \\u2192 l\\xe4ufe\n"


def test_json_for_a_script_is_not_lost_without_an_error(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", STREAMS[failing]())

    def run() -> None:
        with guarded_output(), json_result(tmp_path, wanted=True, prints=True), output_may_fail():
            print("a line")

    with pytest.raises(OutputLostError, match=failing):
        run()


def by_rank_log(folder: Path) -> None:
    (folder / "rank_0.log").symlink_to(FULL)
    with logging_to(folder, rank=0, quiet=True):
        for _ in range(3):
            logging.getLogger("dq").info("a line")


def by_rows(folder: Path) -> None:
    (folder / "metrics.jsonl").symlink_to(FULL)
    rows = RowFile(folder / "metrics.jsonl")
    for step in range(3):
        rows.write({"step": step})
    rows.close()
    assert rows.refused == 3


def by_text_logger(folder: Path) -> None:
    hook = TextLoggerHook()
    hook.json_log_path = str(FULL)
    spare_training_([hook])
    for _ in range(3):
        hook._dump_log({"loss": 1.0}, SimpleNamespace(rank=0))


def by_watchdog(folder: Path) -> None:
    with open("/dev/full", "w", encoding="utf-8", buffering=1) as file:
        dog = Watchdog(1.0, 2.0, file)
        dog._write("nothing for long")
        dog.end()
        # What the stream holds cannot be written at its end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


@pytest.mark.parametrize("write", [by_rank_log, by_rows, by_text_logger, by_watchdog])
def test_a_log_on_a_full_disk_ends_nothing(
    write: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    write(tmp_path)
    said = capsys.readouterr().err.splitlines()
    said += [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    if write is by_watchdog:  # It says something anyway, in another place.
        assert said == []
    else:
        (line,) = said
        assert NO_ROOM in line
        assert "continu" in line


@pytest.fixture(params=["device", "pipe", "link"])
def special(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the path of something that is no file."""
    path = tmp_path / "special"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "link" or os.geteuid() != 0:
        path.symlink_to("/dev/null")
    else:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    return path


def test_a_device_or_a_pipe_is_not_replaced_by_a_file(special: Path) -> None:
    before = special.lstat()
    for write in (write_whole, lambda path, text: save_checkpoint(path, {"a": torch.ones(1)})):
        with pytest.raises((OSError, RuntimeError), match="a device or a pipe"):
            write(special, "text")
    reader = os.open(special, os.O_RDONLY | os.O_NONBLOCK)
    write_text(special, "a text")  # What the user names is written, in place.
    if stat.S_ISFIFO(before.st_mode):
        assert os.read(reader, 100) == b"a text"
    os.close(reader)
    assert special.lstat().st_ino == before.st_ino
    assert sorted(path.name for path in special.parent.iterdir()) == ["special"]


def test_a_link_that_the_user_names_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    write_text(tmp_path / "link", "a")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "a"


@pytest.mark.slow
def test_a_training_whose_output_and_logs_have_no_room_is_done(
    config: Path, tmp_path: Path
) -> None:
    work = tmp_path / "w"
    (work / "logs").mkdir(parents=True)
    for rank in range(2):
        (work / "logs" / f"rank_{rank}.log").symlink_to(FULL)
    words = ["train", str(config), "--work-dir", str(work), "--no-validate"]
    processes: list[Any] = []
    for rank, own in enumerate(rank_environments(2)):
        with full() as out, (tmp_path / f"{rank}.err").open("wb") as errors:
            environ = {**os.environ, **own, "WANDB_MODE": "disabled"}
            processes.append(WarmProcess(words, environ=environ, output=out, errors=errors))
    try:
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.end()
    said = [(tmp_path / f"{rank}.err").read_text().splitlines() for rank in range(2)]
    assert all(line.startswith("warning: ") and NO_ROOM in line for line in said[0] + said[1])
    assert [len(lines) for lines in said] == [2, 1]  # Output and log, and only the log.
    assert (work / "float/float.pth").exists()
    assert (work / "float/summary.json").exists()
