"""The state of submitted jobs: from Slurm, else from the files they left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm.end import read_end
from slurm.own_process import is_of_this_host, pid_of
from slurm.record import Chain, Submitted

ENDED = (
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "STOPPED",
    "PREEMPTED", "BOOT_FAIL", "DEADLINE", "REVOKED",
    "GONE",  # Slurm does not know it any more, and it has left no file.
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The state of a job.

    Attributes:
        name: Slurm's word, for example ``RUNNING``.
        nodes: Its nodes, or why it waits.
        elapsed: In Slurm's notation.
    """

    name: str
    nodes: str = ""
    elapsed: str = ""

    @property
    def has_ended(self) -> bool:
        """Return whether it will not run any more."""
        return self.name.startswith(ENDED)


def states(chain: Chain) -> dict[str, State]:
    """Return the state of each job of a chain by its number."""
    if chain.executor == "slurm":
        ids = [job.job_id for job in chain.jobs]
        queue = _query(_SQUEUE, ids)
        found = {**(_query(_SACCT, ids) or {}), **(queue or {})}
        unknown = "UNKNOWN" if queue is None else "GONE"
        return {j.job_id: found.get(j.job_id) or _state_from_files(chain, j, unknown)
                for j in chain.jobs}  # fmt: skip
    return {job.job_id: _local_state(chain, job) for job in chain.jobs}


_NO_SUCH_JOB = "Invalid job id"
_SQUEUE = ["squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%R|%M", "-j"]
_SACCT = ["sacct", "-n", "-X", "-P", "-o", "JobID,State,NodeList,Elapsed", "-j"]


def _query(command: Sequence[str], ids: Sequence[str]) -> dict[str, State] | None:
    """Return the jobs that a Slurm command reports; None if it does not answer."""
    numbers = sorted({i.split("_")[0] for i in ids})
    try:
        done = subprocess.run(
            [*command, ",".join(numbers)], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and _NO_SUCH_JOB not in done.stderr:
        return None
    found = {}
    for line in done.stdout.splitlines():
        number, *rest = (part.strip() for part in line.split("|"))
        if number in ids and len(rest) == 3:
            name, nodes, elapsed = rest
            found[number] = State(name=name.split()[0], nodes=nodes, elapsed=elapsed)
    return found


def _local_state(chain: Chain, job: Submitted) -> State:
    """Return the state of a job of this machine: that of its process, else from its files."""
    if not job.job_id:
        lives = pid_of(chain.process) is not None or not is_of_this_host(chain.process)
        return State(name="PENDING" if lives else "CANCELLED")
    return State(name="RUNNING") if _is_alive(chain, job.job_id) else _state_from_files(chain, job)


def _state_from_files(chain: Chain, job: Submitted, unknown: str = "UNKNOWN") -> State:
    end = read_end(Path(chain.folder) / "jobs", job.job_id)
    if end is None:
        return State(name=unknown)
    code = int(end["code"])
    name = {0: "COMPLETED", 75: "STOPPED"}.get(code, f"FAILED({code})")
    return State(name=name, elapsed=time.strftime("%d.%m. %H:%M", time.localtime(end["time"])))


def cancel_chain(chain: Chain) -> list[str]:
    """Cancel all jobs of a chain that have not ended, and return their numbers.

    Raises:
        RuntimeError: Slurm fails to cancel them.
    """
    waiting = [number for number, state in states(chain).items() if not state.has_ended]
    if chain.executor != "slurm":
        # The process that runs them forwards the signal, and starts none of the waiting jobs.
        first = pid_of(chain.process)
        for pid in [first] if first else [int(n) for n in waiting if n and _is_alive(chain, n)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        return [job.job_id or job.name for job in chain.jobs if job.job_id in waiting]
    if waiting:
        # Cancel those that wait for others first, so that none of them starts.
        cancel(list(reversed(waiting)))
    return waiting


def cancel(numbers: Sequence[str]) -> None:
    """Cancel jobs in Slurm, in this order; jobs that have ended already are no error.

    Raises:
        RuntimeError: Slurm fails to cancel them.
    """
    words = ["scancel", *numbers]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(
            "scancel did not answer within 60 s; `scontrol ping` tells whether Slurm answers"
        ) from error
    except OSError as error:
        raise RuntimeError(
            f"scancel cannot be run: {error.strerror}; cancel on a login node of the cluster"
        ) from error
    wrong = [line for line in done.stderr.splitlines() if _NO_SUCH_JOB not in line]
    if done.returncode and wrong:  # One may have ended in the meantime.
        said = " ".join(" ".join(wrong).split())
        raise RuntimeError(f"scancel failed: {said}; `scontrol ping` tells whether it answers")


def _is_alive(chain: Chain, number: str) -> bool:
    """Return whether a local job's process lives; pids are reused, so its command is compared."""
    try:
        words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"submitit.local._local" in words and str(Path(chain.folder, "jobs")).encode() in words
