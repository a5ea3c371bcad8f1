"""Run commands in separate processes, because each may crash, hang or need too much memory.

They are forked from a server that has already imported torch and mmdet, because imports would take
most of the time. They share nothing else. Their output goes into a file.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LAUNCHER = "launcher.cli:main"
_PRELOADED = [
    *("launcher.stages", "launcher.session", "launcher.report", "mmdet.apis"),
    *("dq.quant.export.qdq", "onnxruntime", "onnxscript", "launcher.coverage.warm_exporter"),
]
_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a process.

    Attributes:
        seconds: Wall time in seconds.
        mib: Resident memory in MiB.
    """

    seconds: float = 300.0
    mib: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a process ended.

    Attributes:
        code: Its exit code, negative for a signal.
        output: All its printed text.
        killed: Why it was killed for exceeding a limit; empty if it was not.
    """

    code: int
    output: str
    killed: str = ""

    @property
    def error(self) -> str:
        """The error line that it printed; empty if there is none."""
        lines = [line for line in self.output.splitlines() if line.startswith("error: ")]
        return lines[-1].removeprefix("error: ") if lines else ""

    @property
    def has_traceback(self) -> bool:
        """Whether a raw traceback was printed."""
        return "Traceback (most recent call last)" in self.output


def run(words: Sequence[str], output: Path, limits: Limits, *, target: str = LAUNCHER) -> Ended:
    """Run a command in a new process until it ends.

    Args:
        words: Its arguments.
        output: The file for its printed text.
        limits: It is killed if it exceeds one.
        target: ``module:function``; the function takes the words and returns an exit code.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    child = context.Process(target=_be, args=(target, list(words), str(output)))
    began = time.monotonic()
    child.start()
    killed = ""
    while child.is_alive():
        child.join(_POLL_S)
        if time.monotonic() - began > limits.seconds:
            killed = f"took more than {limits.seconds:.0f} s"
        elif _resident_mib(child.pid) > limits.mib:
            killed = f"took more than {limits.mib} MiB"
        if killed:
            _kill(child.pid)
            child.join()
            break
    text = output.read_text(errors="replace") if output.is_file() else ""
    return Ended(code=child.exitcode or 0, output=text, killed=killed)


def _be(target: str, words: list[str], output: str) -> None:
    """Run the command in this process: in a new session, with the output into the file."""
    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    # Variables of torchrun or a scheduler would make the process a rank.
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    module, _, name = target.partition(":")
    code = getattr(importlib.import_module(module), name)(words)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _kill(pid: int | None) -> None:
    """Kill a process and all processes of its session."""
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _resident_mib(pid: int | None) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    resident = re.search(r"VmRSS:\s*(\d+)", status)
    return int(resident[1]) // 1024 if resident else 0
