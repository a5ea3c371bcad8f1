"""Run the launcher on real ranks with an injected fault, and report how and when it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.launcher.conftest import ROOT, rank_environments
from tests.processes.warm import WarmProcess, session

MARK = "DQ_STRIKE"
Process = subprocess.Popen[bytes] | WarmProcess


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a job ended.

    Attributes:
        codes: Exit code of each rank in order, or that of torchrun alone.
        errors: Lines that begin with ``error: ``, of all ranks.
        output: Everything printed.
        seconds: From the fault, or else from the start, until the last process had ended.
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
    """Start ranks as srun does, so that nothing ends the others when one dies.

    Args:
        number: Number of ranks.
        words: The launcher's command line.
        folder: For the ranks' output; ``folder/struck`` is written when the fault happens.
        limit_s: Time limit for all ranks, in seconds.
        environ: Further environment variables.
        absent: Ranks that are never started.
    """
    arguments = [str(word) for word in words]
    processes: list[tuple[Process, Path]] = []
    for rank, own in enumerate(rank_environments(number)):
        if rank in absent:
            continue
        output = folder / f"rank_{rank}.txt"
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("wb") as file:
            variables = {**os.environ, **own, **(environ or {})}
            process = WarmProcess(arguments, environ=variables, output=file)
        (folder / f"rank_{rank}.pid").write_text(str(process.pid))
        processes.append((process, output))
    return _await(processes, folder, None, limit_s)


def started(folder: Path) -> list[int]:
    """Return the process ids of the ranks that `run_ranks_alone` started, in order."""
    return [int(path.read_text()) for path in sorted(folder.glob("rank_*.pid"))]


def run_torchrun(
    number: int,
    *words: object,
    folder: Path,
    limit_s: float = 120.0,
    environ: Mapping[str, str] | None = None,
    options: tuple[str, ...] = (),
    outlived: bool = False,
) -> Ending:
    """Start torchrun as a user does; arguments as for `run_ranks_alone`.

    Args:
        number: Number of ranks.
        words: The launcher's command line.
        folder: As there.
        limit_s: As there.
        environ: As there.
        options: Further options of torchrun.
        outlived: torchrun itself is killed, and its ranks must end without it.
    """
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *options]
    command += ["--nproc-per-node", str(number), "-m", "launcher", *map(str, words)]
    output = folder / "torchrun.txt"
    output.parent.mkdir(parents=True, exist_ok=True)
    variables = {**os.environ, "OMP_NUM_THREADS": "1", MARK: mark, **(environ or {})}
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT
        )
    return _await([(process, output)], folder, mark, limit_s, outlived=outlived)


def _await(
    processes: Sequence[tuple[Process, Path]],
    folder: Path,
    mark: str | None,
    limit_s: float,
    *,
    outlived: bool = False,
) -> Ending:
    began = time.time()
    try:
        end = time.monotonic() + limit_s
        for process, _ in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, end - time.monotonic()))
        while outlived and list(_remaining(processes, mark)) and time.monotonic() < end:
            time.sleep(0.2)
        alive = [process for process, _ in processes if process.poll() is None]
        struck = [float(path.read_text()) for path in folder.glob("struck*")]
        seconds = time.time() - (min(struck) if struck else began)
        if not alive:
            time.sleep(2)
        left = [line for _, line in _remaining(processes, mark)]
        output = "\n".join(path.read_text(errors="replace") for _, path in processes)
        assert not alive, f"still running after {limit_s} s: {left}\n{output[-4000:]}"
    finally:
        for pid, _ in _remaining(processes, mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process, _ in processes:
            process.wait()
    return Ending(
        codes=[process.wait() for process, _ in processes],
        errors=[line for line in output.splitlines() if line.startswith("error: ")],
        output=output,
        seconds=seconds,
        left=left,
    )


def _remaining(
    processes: Sequence[tuple[Process, Path]], mark: str | None
) -> Iterator[tuple[int, str]]:
    """Yield the living processes of a job: with its mark, or in the sessions of its ranks."""
    if mark is not None:
        yield from marked(mark)
        return
    for process, output in processes:
        for pid in session(process.pid):
            yield pid, f"{output.stem}: process {pid}"


def marked(mark: str) -> Iterator[tuple[int, str]]:
    """Yield every living process that has a mark in its inherited environment."""
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
