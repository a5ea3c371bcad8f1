"""One process at a time writes a folder, and a dead one blocks nobody: real processes, kills."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dq.one_writer import lock as one_writer
from dq.one_writer import writer as writers
from dq.one_writer.lock import hold
from dq.one_writer.writer import Writer, writer_of
from tests.processes.warm import ROOT

HOLDER = """
import sys, time
from pathlib import Path
from dq.one_writer import lock as one_writer
one_writer.BEAT_S = 0.2
try:
    lock = one_writer.hold(Path(sys.argv[1]), silence_s=2.0)
except ValueError as error:
    print(f"refused: {error}", flush=True)
    raise SystemExit(2)
print("held", flush=True)
BODY
lock.release()
"""


@contextmanager
def holder(
    folder: Path, body: str = "sys.stdin.read()", environ: Mapping[str, str] | None = None,
    prefix: tuple[str, ...] = (),
) -> Iterator[subprocess.Popen[str]]:  # fmt: skip
    """Start a process that tries to lock a folder, and wait for its first line."""
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", HOLDER.replace("BODY", body), str(folder)], cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **(environ or {})},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a machine from which no other process is visible."""
    own = writers.this_process()
    there = {**own, "host": "other", "boot": "another boot", "space": "another space"}
    monkeypatch.setattr(writers, "this_process", lambda: there)


def test_a_second_writer_is_refused_with_process_and_time(tmp_path: Path) -> None:
    with holder(tmp_path / "new") as first:
        assert line(first) == "held"
        with holder(tmp_path / "new") as second:
            said = line(second)
        assert f"process {first.pid} on {os.uname().nodename} since 20" in said
        assert "choose another --work-dir" in said
    assert os.listdir(tmp_path / "new") == [".writer.1"], "a kill leaves the file"


def test_a_killed_holder_is_replaced_at_once_and_nothing_is_left(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        assert line(first) == "held"
        first.send_signal(signal.SIGKILL)
        first.wait()
    lock = hold(tmp_path)
    assert lock.followed is not None
    assert lock.followed.process["pid"] == first.pid
    assert os.listdir(tmp_path) == [".writer.2"]
    lock.release()
    assert os.listdir(tmp_path) == []


def test_a_reused_pid_is_not_the_holder(tmp_path: Path) -> None:
    process = {**writers.this_process(), "began": 1}
    who = {"token": "x", "process": process, "since": 1.0, "job": "", "attempt": 0}
    content = b"%020d\n" % 5 + json.dumps(who).encode()
    (tmp_path / ".writer.7").write_bytes(content)
    lock = hold(tmp_path)
    assert os.listdir(tmp_path) == [".writer.8"]
    lock.release()


@pytest.mark.slow
def test_from_another_machine_the_heartbeat_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Holds the GIL like a long json.load: the heartbeat continues.
    body = "import ctypes; ctypes.PyDLL(None).sleep(60)"
    with holder(tmp_path, body) as first:
        assert line(first) == "held"
        elsewhere(monkeypatch)
        time.sleep(0.5)
        with pytest.raises(ValueError, match=f"process {first.pid} on"):
            hold(tmp_path, silence_s=20.0)
        first.send_signal(signal.SIGKILL)
        first.wait()
        began = time.monotonic()
        lock = hold(tmp_path, silence_s=2.0)
        assert time.monotonic() - began >= 2.0
        lock.release()


def test_an_unreadable_holder_is_replaced_after_silence(tmp_path: Path) -> None:
    (tmp_path / ".writer.1").write_bytes(b"\0\0\0")
    lock = hold(tmp_path, silence_s=0.4)
    lock.release()


def test_a_requeued_slurm_job_replaces_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holder(tmp_path, environ={"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "0"}) as first:
        assert line(first) == "held"
        elsewhere(monkeypatch)
        monkeypatch.setenv("SLURM_JOB_ID", "12")
        # A second command inside the same job is not a restart of the job.
        with pytest.raises(ValueError, match="is being written"):
            hold(tmp_path, silence_s=20.0)
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        began = time.monotonic()
        lock = hold(tmp_path, silence_s=60.0)
        assert time.monotonic() - began < 30.0
        lock.release()


def test_a_process_that_was_taken_for_dead_is_told(tmp_path: Path) -> None:
    body = """
one_writer.LOOK_S = 0.2
lock.watch(lambda line: print(line, flush=True))
sys.stdin.read()
"""
    with holder(tmp_path, body) as first:
        assert line(first) == "held"
        (tmp_path / ".writer.2").write_bytes(b"0\n{}")
        assert "is written by another process now" in line(first)


def test_only_one_process_replaces_a_dead_holder(tmp_path: Path) -> None:
    for number in range(3):
        folder = tmp_path / str(number)
        with holder(folder) as dead:
            assert line(dead) == "held"
            dead.send_signal(signal.SIGKILL)
            dead.wait()
        locks, refused = [], []

        def contend(folder: Path = folder, locks: list = locks, refused: list = refused) -> None:
            try:
                locks.append(hold(folder))
            except ValueError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(locks), len(refused)) == (1, 7)
        locks[0].release()
        assert os.listdir(folder) == []


@pytest.mark.slow
def test_a_killed_heartbeat_restarts_and_none_outlives_its_parent(tmp_path: Path) -> None:
    body = """
one_writer.LOOK_S = 0.2
lock.watch(print)
print(lock._beat.pid, flush=True)
import os, signal
os.kill(lock._beat.pid, signal.SIGTERM)
os.kill(lock._beat.pid, signal.SIGKILL)
time.sleep(2.0)
print(lock._beat.pid, flush=True)
sys.stdin.read()
"""
    with holder(tmp_path, body) as first:
        assert line(first) == "held"
        killed, again = line(first), line(first)
        assert killed != again
        first.send_signal(signal.SIGKILL)
        first.wait()
        end = time.monotonic() + 20.0
        while Path(f"/proc/{again}").exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert not Path(f"/proc/{again}").exists()


def test_a_release_in_the_middle_of_a_look_starts_no_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = hold(tmp_path)
    started = []

    def released_meanwhile() -> bool:
        if not lock._released.is_set():
            lock.release()
        return False

    monkeypatch.setattr(one_writer, "LOOK_S", 0.0)
    monkeypatch.setattr(lock, "is_lost", released_meanwhile)
    monkeypatch.setattr(lock, "_start_beat", lambda: started.append("heartbeat") or lock._beat)
    lock._look(pytest.fail)
    assert not started, "it would write into whichever file has the closed one's number now"


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    lock = hold(tmp_path)
    with pytest.raises(ValueError, match="is being written"):
        hold(tmp_path)
    lock.release()
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="choose another --work-dir"):
        hold(tmp_path / "file" / "work")


def test_nobody_is_seen_to_hold_a_folder_whose_lock_is_unreadable(tmp_path: Path) -> None:
    lock = hold(tmp_path)
    assert writer_of(tmp_path) == lock.me
    lock.release()
    (tmp_path / ".writer.1").mkdir()  # Reading it fails, even for root.
    assert writer_of(tmp_path) is None


def test_the_writer_says_who_it_is() -> None:
    assert str(os.getpid()) in str(Writer())


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("has_links", [True, False])
def test_a_failure_at_any_moment_is_one_line_and_leaves_no_lock(
    has_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_links:

        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    calls = [(os, "open"), (os, "write"), (os, "fsync"), (os, "fstat"), (os, "scandir")]
    calls.append((subprocess, "Popen"))
    before, failed = open_files(), set()
    for owner, name in calls:
        for moment in range(20):
            left = iter(range(moment))
            real = getattr(owner, name)

            def call(*args: Any, left: Any = left, real: Any = real, **more: Any) -> Any:
                if next(left, None) is None:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(*args, **more)

            with monkeypatch.context() as patch:
                patch.setattr(owner, name, call)
                try:
                    lock = hold(tmp_path)
                except (ValueError, RuntimeError) as caught:
                    lock, error = None, caught
            if lock is not None:
                lock.release()
                break
            failed.add(name)
            assert str(tmp_path) in str(error)
            assert "No space left on device" in str(error)
            assert os.listdir(tmp_path) == []
            assert open_files() == before
    # A link that worked is not looked at again.
    assert failed == {name for _, name in calls} - ({"fstat"} if has_links else set())


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:7]))
    lock = hold(tmp_path)
    found = writer_of(tmp_path)
    assert found is not None
    assert found.token == lock.me.token
    lock.release()
