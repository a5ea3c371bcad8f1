"""Runs the launcher on real ranks, lets a fault strike, and tells how and when all of it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.launcher.conftest import ROOT

MARK = "DQ_STRIKE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a job ended.

    Attributes:
        codes: Exit code of each rank in order, or that of torchrun alone.
        errors: Lines that begin with ``error: ``, of all ranks.
        output: Everything printed.
        seconds: From the strike until the last process had ended; from the start without one.
        left: Command lines of processes that had not ended two seconds later.
    """

    codes: list[int]
    errors: list[str]
    output: str
    seconds: float
    left: list[str]


def run_ranks_alone(
    number: int,
    *words: object,
    folder: Path,
    limit_s: float = 120.0,
    environ: Mapping[str, str] | None = None,
    absent: tuple[int, ...] = (),
) -> Ending:
    """Start ranks as srun does, with nobody who ends the others when one dies.

    Args:
        number: Of ranks.
        words: The launcher's command line.
        folder: Where the ranks' output goes; ``folder/struck`` says when a fault struck.
        limit_s: All must have ended by then.
        environ: More variables.
        absent: Ranks that are never started.
    """
    mark = uuid.uuid4().hex
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(number):
        if rank in absent:
            continue
        own = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number,
            "GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": mark,
        }  # fmt: skip
        command = [sys.executable, "-m", "launcher", *map(str, words)]
        processes.append(_start(command, folder / f"rank_{rank}.txt", mark, environ, own))
    return _await(processes, folder, mark, limit_s)


def run_torchrun(
    number: int,
    *words: object,
    folder: Path,
    limit_s: float = 120.0,
    environ: Mapping[str, str] | None = None,
    options: tuple[str, ...] = (),
) -> Ending:
    """Start torchrun as a user does; arguments as for `run_ranks_alone`."""
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *options]
    command += ["--nproc-per-node", str(number), "-m", "launcher", *map(str, words)]
    process = _start(command, folder / "torchrun.txt", mark, environ, {})
    return _await([process], folder, mark, limit_s)


def _start(
    command: list[str],
    output: Path,
    mark: str,
    environ: Mapping[str, str] | None,
    own: Mapping[str, object],
) -> tuple[subprocess.Popen[bytes], Path]:
    output.parent.mkdir(parents=True, exist_ok=True)
    variables = {**os.environ, "OMP_NUM_THREADS": "1", MARK: mark, **(environ or {})}
    variables.update({name: str(value) for name, value in own.items()})
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT
        )
    return process, output


def _await(
    processes: list[tuple[subprocess.Popen[bytes], Path]], folder: Path, mark: str, limit_s: float
) -> Ending:
    began = time.time()
    try:
        end = time.monotonic() + limit_s
        for process, _ in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, end - time.monotonic()))
        alive = [process for process, _ in processes if process.poll() is None]
        struck = [float(path.read_text()) for path in folder.glob("struck*")]
        seconds = time.time() - (min(struck) if struck else began)
        if not alive:
            time.sleep(2)
        left = [line for _, line in marked(mark)]
        output = "\n".join(path.read_text(errors="replace") for _, path in processes)
        assert not alive, f"still running after {limit_s} s: {left}\n{output[-4000:]}"
    finally:
        for pid, _ in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process, _ in processes:
            process.wait()
    return Ending(
        codes=[process.returncode for process, _ in processes],
        errors=[line for line in output.splitlines() if line.startswith("error: ")],
        output=output,
        seconds=seconds,
        left=left,
    )


def marked(mark: str) -> Iterator[tuple[int, str]]:
    """Yield every living process that was started under a mark, by what it inherited."""
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if wanted not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            if (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                yield int(entry.name), line
