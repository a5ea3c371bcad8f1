"""Files are written whole or not at all, by several processes at once, through errors and kills."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from dq.whole_file import drafts, link_whole, remove_drafts, write_whole


def write_often(path: Path, letter: str, times: int) -> None:
    for _ in range(times):
        write_whole(path, letter * 100_000)


def test_two_writers_never_damage_a_file_nor_hinder_each_other(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_whole(path, "a" * 100_000)
    pool = multiprocessing.get_context("fork")
    writers = [pool.Process(target=write_often, args=(path, letter, 60)) for letter in "ab"]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        content = path.read_text()
        assert content in ("a" * 100_000, "b" * 100_000)
        seen.add(content[0])
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen <= {"a", "b"}
    assert os.listdir(tmp_path) == ["file.json"]


def test_a_failure_leaves_all_files_as_they_were(tmp_path: Path) -> None:
    paths = [tmp_path / "one", tmp_path / "two"]
    paths[0].write_text("before")

    def fail() -> None:
        with drafts(*paths) as lent:
            for draft in lent:
                draft.write_text("after")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert paths[0].read_text() == "before"
    assert os.listdir(tmp_path) == ["one"]


def no_room(_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_error_names_the_file_and_not_its_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = tmp_path / "no folder/file"

    def write() -> None:
        with drafts(tmp_path / "one", lost) as lent:
            for draft in lent:
                draft.write_text("text")

    def read_another() -> None:
        with drafts(tmp_path / "one"):
            (tmp_path / "other").read_text()

    with pytest.raises(FileNotFoundError) as missing:
        write()
    assert missing.value.filename == str(lost)
    with pytest.raises(FileNotFoundError) as missing:
        link_whole(lost, "target")
    assert (missing.value.filename, missing.value.filename2) == (str(lost), None)
    assert str(missing.value) == f"[Errno 2] No such file or directory: '{lost}'"
    with pytest.raises(FileNotFoundError) as missing:
        read_another()
    assert missing.value.filename == str(tmp_path / "other")
    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OSError, match="No space left on device") as unwritten:
        write_whole(tmp_path / "one", "text")
    one = tmp_path / "one"
    assert str(unwritten.value) == f"[Errno 28] No space left on device: '{one}'"
    assert os.listdir(tmp_path) == []


def test_a_name_of_the_greatest_length_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 127)
    write_whole(path, "text")
    assert path.read_text() == "text"


def test_modes_are_those_of_any_new_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "own", b"")
    (tmp_path / "other").write_bytes(b"")
    assert (tmp_path / "own").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_link_is_never_missing(tmp_path: Path) -> None:
    path = tmp_path / "latest.pth"
    for target in ("epoch_1.pth", "epoch_2.pth"):
        link_whole(path, target)
        assert os.readlink(path) == target
    assert os.listdir(tmp_path) == ["latest.pth"]


KILLED = """
import sys, time
from pathlib import Path
from dq.whole_file import drafts
with drafts(Path(sys.argv[1], "deep", "file")) as (draft,):
    draft.write_text("half")
    print("written", flush=True)
    time.sleep(60)
"""


def test_only_drafts_of_killed_processes_are_removed(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    kept = [tmp_path / ".hidden.tmp", tmp_path / "deep/.file.tmp", tmp_path / "deep/a.0123.tmp"]
    for path in kept:
        path.write_text("")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(list(tmp_path.rglob(".file.*.tmp"))) == 1
    assert len(remove_drafts(tmp_path)) == 1
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)
