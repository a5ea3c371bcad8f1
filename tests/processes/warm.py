"""Start the launcher in separate processes, forked from one that has its libraries loaded.

A process that imports torch and mmdet needs seconds before it does anything. Here a server has done
so once. Each process it forks is a session leader with its own output, environment and working
folder, and runs `python -m launcher`'s module from its start.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = ("torch._dynamo", "mmdet.apis", "mmcv.runner", "launcher.stages", "launcher.session",
             "launcher.report")  # fmt: skip
# What is read when torch is imported: the launcher sets the second before that.
START = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "FATAL"}


class WarmProcess:
    """A running launcher, with the methods of `subprocess.Popen` that tests use.

    Args:
        words: The launcher's command line.
        environ: The whole environment.
        output: Receives standard output and standard error.
        errors: Receives standard error instead, if given.
    """

    def __init__(
        self,
        words: list[str],
        *,
        environ: Mapping[str, str],
        output: IO[Any],
        errors: IO[Any] | None = None,
    ) -> None:
        self.returncode: int | None = None
        self._channel = socket.socket(socket.AF_UNIX)
        self._channel.connect(_server())
        order = json.dumps({"words": words, "environ": dict(environ), "cwd": str(ROOT)}).encode()
        streams = [output.fileno(), (errors or output).fileno()]
        socket.send_fds(self._channel, [len(order).to_bytes(8)], streams)
        self._channel.sendall(order)
        self.pid = int.from_bytes(self._channel.recv(8))

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._channel.settimeout(timeout)
            try:
                status = self._channel.recv(8)
            except TimeoutError:
                raise subprocess.TimeoutExpired("launcher", timeout or 0.0) from None
            assert status, "the server that forks launchers is gone"
            self.returncode = os.waitstatus_to_exitcode(int.from_bytes(status))
        return self.returncode

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._channel], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def end(self) -> None:
        """Kill the process and all processes of its session."""
        for pid in session(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait(10)


def session(leader: int) -> list[int]:
    """Return the live processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, *rest = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(rest[2]) == leader and state != "Z":
                    found.append(int(entry.name))
    return found


_started: list[tuple[subprocess.Popen[bytes], str]] = []
_lock = threading.Lock()


def _server() -> str:
    """Return the address of the server; it starts at the first call and ends with this process."""
    with _lock:
        if not _started:
            address = f"{tempfile.mkdtemp(prefix='warm-')}/launcher"
            read, write = os.pipe()
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.processes.warm", address, str(read)],
                cwd=ROOT, pass_fds=[read], env={**os.environ, **START},
            )  # fmt: skip
            os.close(read)  # The other end closes when this process ends, for whatever reason.
            os.set_inheritable(write, False)
            atexit.register(process.wait)
            atexit.register(os.close, write)
            end = time.monotonic() + 120
            while not Path(address).exists():
                assert process.poll() is None, "the server that forks launchers did not start"
                assert time.monotonic() < end, "the server that forks launchers takes too long"
                time.sleep(0.05)
            _started.append((process, address))
        return _started[0][1]


def serve(address: str, parent: int) -> None:
    """Fork a launcher for each request until the test's own process is gone."""
    import importlib

    for name in PRELOADED:
        importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen()
    os.rename(f"{address}.new", address)
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    waiting: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([listener, woken, parent], [], [])
        if parent in ready:
            return
        if woken in ready:
            woken.recv(4096)
            _report(waiting)
        if listener in ready:
            channel, _ = listener.accept()
            pid = _fork(channel, [listener, woken, wake, *waiting.values()], parent)
            waiting[pid] = channel
            channel.sendall(pid.to_bytes(8))


def _report(waiting: dict[int, socket.socket]) -> None:
    """Tell the waiting processes how their launchers ended."""
    for pid in list(waiting):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with waiting.pop(pid) as channel, contextlib.suppress(OSError):
                channel.sendall(status.to_bytes(8))


def _fork(channel: socket.socket, others: list[socket.socket], parent: int) -> int:
    head, streams, _, _ = socket.recv_fds(channel, 8, 2)
    text = b""
    while len(text) < int.from_bytes(head):
        text += channel.recv(1 << 16)
    pid = os.fork()
    if pid:
        for stream in streams:
            os.close(stream)
        return pid
    order = json.loads(text)
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for other in [channel, *others]:
        other.close()
    os.close(parent)
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environ"])
    _be_launcher(order["words"])
    raise AssertionError("unreachable")


def _be_launcher(words: list[str]) -> None:
    """Run the launcher like a new interpreter, and end like one."""
    import importlib
    import multiprocessing.util
    import traceback

    code = 1
    try:
        from launcher.cli import main

        if "DQ_INJECT" in os.environ:
            importlib.import_module("tests.launcher.failures.injected")
        code = main(words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]
        multiprocessing.util._exit_function()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
