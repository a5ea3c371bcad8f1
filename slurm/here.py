"""Run jobs on this machine as Slurm would: one after another, until all have ended."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import submitit

from slurm.end import read_end
from slurm.own_process import this_process
from slurm.placeless import without_rank_variables
from slurm.plan import Element, Job
from slurm.record import Chain, Submitted, keep, recorded
from slurm.task import STOPPED, Task, task_of
from slurm.text import Place

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PAUSE_S = 0.2
# Log lines that are not a stage's result: of the launcher's and other loggers, of submitit and of
# torchrun.
_LOGGED = re.compile(
    r"^(\d\d:\d\d:\d\d [A-Z] |submitit |[WEI]\d{4} |Setting OMP_NUM_THREADS|\*{5,})"
)


class OwnSession(submitit.LocalExecutor):
    """submitit's local executor, with processes in a session of their own.

    Ctrl-C signals all processes of the terminal. In the same session submitit's process would
    print a traceback, and the ranks would be asked to stop twice.
    """

    def _submit_command(self, command: str) -> Any:
        environ = {
            **os.environ,
            "SUBMITIT_LOCAL_NTASKS": "1",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_TIMEOUT_S": str(365 * 86400),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": "30",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
        }
        words = [sys.executable, "-m", "submitit.local._local", str(self.folder)]
        process = subprocess.Popen(
            words, env=environ, start_new_session=True, stdin=subprocess.DEVNULL
        )
        return self.job_class(
            folder=self.folder, job_id=str(process.pid), process=process, tasks=[0]
        )


class _Stop:
    """Forward signals from the user or the system to the running job."""

    def __init__(self) -> None:
        self.asked: str | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Say once that the job is stopping, and end its process with SIGTERM."""
        if self.asked is None:
            with contextlib.suppress(OSError):
                os.write(2, b"stopping: the job finishes its step and writes a checkpoint\n")
        self.asked = signal.Signals(number).name
        if self.process is not None:
            self.process.terminate()


def run_here(jobs: Sequence[Job], place: Place) -> int:
    """Run the jobs one after another on this machine and return the first nonzero exit code.

    Each job is a process of submitit's local executor. For several ranks it starts torchrun, which
    ends all of them when one dies. The result of a job, or its error, is printed at its end.
    SIGINT, SIGTERM and SIGHUP end the running job with a checkpoint, and cancel those after it.
    """
    waiting = [(job, element) for job in jobs for element in job.elements]
    chain = Chain(
        name=place.chain,
        executor="local",
        folder=str(place.folder),
        created=time.time(),
        jobs=tuple(recorded("", job, element, 1) for job, element in waiting),
        process=this_process(),
    )
    keep(chain)
    with _handled() as stop:
        for number, (job, element) in enumerate(waiting):
            if stop.asked:
                return STOPPED
            handle = _start(job, element, place)
            stop.process = handle._process
            if stop.asked:  # A signal between the two lines above.
                handle._process.terminate()
            begun = recorded(handle.job_id, job, element, 1)
            chain = _with(chain, number, begun)
            keep(chain)
            what, log = element.label or job.name, chain.log(begun, 0)
            _print(f"{what}: {log}")
            code = _await(handle, stop)
            print_result(what, log, code)
            if code:
                return code
    return 0


def print_result(what: str, log: Path, code: int) -> None:
    """Print the result of a job, or why it ended.

    Args:
        what: The job.
        log: Log of its first rank.
        code: Its exit code.
    """
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if code == 0:
        results = [line for line in lines if not _LOGGED.match(line)]
        _print("\n".join(results))
    elif code == STOPPED:
        _print(f"{what}: stopped by a signal; submit again to continue", error=True)
    else:
        why = errors[-1] if errors else f"ended with exit code {code}; its log says why: {log}"
        _print(f"error: {what}: {why}", error=True)


def _print(text: str, *, error: bool = False) -> None:
    """Print a text if the terminal still exists."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr if error else sys.stdout, flush=True)


def run_in_process(jobs: Sequence[Job], place: Place) -> int:
    """Run the jobs one after another in this process, for a debugger; return the exit code."""
    for job in jobs:
        for element in job.elements:
            task = replace(task_of(element, job.profile), ranks_per_node=0)
            with without_rank_variables():
                handle = submitit.DebugExecutor(place.jobs).submit(task)
                try:
                    handle.results()
                except SystemExit as end:
                    return int(end.code or 0)
    return 0


def _start(job: Job, element: Element, place: Place) -> Any:
    ranks = job.profile.ranks_per_node
    task: Task = replace(task_of(element, job.profile), ranks_per_node=ranks if ranks > 1 else 0)
    with without_rank_variables(_variables(job, place)):
        return OwnSession(place.jobs).submit(task)


def _await(handle: Any, stop: _Stop) -> int:
    """Return the exit code of a local job."""
    while handle._process.poll() is None:
        time.sleep(PAUSE_S)
    stop.process = None
    end = read_end(Path(handle.paths.folder), handle.job_id)
    if end is not None:
        return int(end["code"])
    return STOPPED if stop.asked else 1


@contextmanager
def _handled() -> Iterator[_Stop]:
    stop = _Stop()
    # Signals that nohup or similar tools ignore stay ignored.
    former = {n: signal.signal(n, stop.handle) for n in SIGNALS
              if signal.getsignal(n) is not signal.SIG_IGN}  # fmt: skip
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _with(chain: Chain, number: int, begun: Submitted) -> Chain:
    jobs = (*chain.jobs[:number], begun, *chain.jobs[number + 1 :])
    return replace(chain, jobs=jobs)


def _variables(job: Job, place: Place) -> dict[str, str]:
    """Return the variables that a batch script sets on a cluster and a local job needs."""
    path = [str(place.folder / "code"), os.environ.get("PYTHONPATH", ""), str(place.cwd)]
    more = {name: str(value) for name, value in job.profile.environment.items()}
    if place.snapshot:
        more |= {"PYTHONPATH": ":".join(filter(None, path)), "PYTHONSAFEPATH": "1"}
    more |= {"WANDB_RUN_GROUP": os.environ.get("WANDB_RUN_GROUP", place.group)}
    return {**more, "CUDA_VISIBLE_DEVICES": _gpus(job.profile.gpus_per_node)}


def _gpus(number: int) -> str:
    """Return the first ``number`` GPUs that this shell may use, for CUDA_VISIBLE_DEVICES."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(n) for n in range(number)] if allowed is None else allowed.split(",")
    return ",".join(names[:number])
