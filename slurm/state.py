"""How submitted jobs fare: what Slurm says, else what they left behind."""

from __future__ import annotations

import contextlib
import json
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
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How a job fares.

    Attributes:
        name: Slurm's word, ``RUNNING`` say.
        nodes: Where, or why it waits.
        elapsed: As Slurm writes it.
    """

    name: str
    nodes: str = ""
    elapsed: str = ""

    @property
    def has_ended(self) -> bool:
        """Tell whether it will not run any more."""
        return self.name.startswith(ENDED)


def states(chain: Chain) -> dict[str, State]:
    """Return the state of each job of a chain by its number."""
    if chain.executor == "slurm":
        ids = [job.job_id for job in chain.jobs]
        found = {**_said(_SACCT, ids), **_said(_SQUEUE, ids)}
        return {j.job_id: found.get(j.job_id) or _left_behind(chain, j) for j in chain.jobs}
    return {job.job_id: _here(chain, job) for job in chain.jobs}


_SQUEUE = ["squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%R|%M", "-j"]
_SACCT = ["sacct", "-n", "-X", "-P", "-o", "JobID,State,NodeList,Elapsed", "-j"]


def _said(command: Sequence[str], ids: Sequence[str]) -> dict[str, State]:
    """Return what a command of Slurm's says; nothing where there is none or it knows nothing."""
    numbers = sorted({i.split("_")[0] for i in ids})
    try:
        done = subprocess.run(
            [*command, ",".join(numbers)], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found = {}
    for line in done.stdout.splitlines():
        number, *rest = (part.strip() for part in line.split("|"))
        if number in ids and len(rest) == 3:
            name, nodes, elapsed = rest
            found[number] = State(name=name.split()[0], nodes=nodes, elapsed=elapsed)
    return found


def _here(chain: Chain, job: Submitted) -> State:
    """Return the state of a job of this machine: its process's, else what it left behind."""
    if not job.job_id:
        lives = pid_of(chain.process) is not None or not is_of_this_host(chain.process)
        return State(name="PENDING" if lives else "CANCELLED")
    return State(name="RUNNING") if _is_alive(chain, job.job_id) else _left_behind(chain, job)


def _left_behind(chain: Chain, job: Submitted) -> State:
    end = read_end(Path(chain.folder) / "jobs", job.job_id)
    if end is None:
        return State(name="UNKNOWN")
    code = int(end["code"])
    name = {0: "COMPLETED", 75: "STOPPED"}.get(code, f"FAILED({code})")
    return State(name=name, elapsed=time.strftime("%d.%m. %H:%M", time.localtime(end["time"])))


def cancel_chain(chain: Chain) -> list[str]:
    """Cancel all jobs of a chain that have not ended, and return their numbers.

    Raises:
        RuntimeError: Slurm does not do it.
    """
    waiting = [number for number, state in states(chain).items() if not state.has_ended]
    if chain.executor != "slurm":
        # Whoever runs them hands the signal on, and begins none of those that wait.
        first = pid_of(chain.process)
        for pid in [first] if first else [int(n) for n in waiting if n and _is_alive(chain, n)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        return [job.job_id or job.name for job in chain.jobs if job.job_id in waiting]
    if waiting:
        # Those that wait for others first, so that none of them begins.
        done = subprocess.run(
            ["scancel", *reversed(waiting)], capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode:
            said = " ".join(done.stderr.split())
            raise RuntimeError(f"scancel failed: {said}; `scontrol ping` tells whether it answers")
    return waiting


def _is_alive(chain: Chain, number: str) -> bool:
    """Tell whether a local job's process lives; numbers are used again, so its command counts."""
    try:
        words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"submitit.local._local" in words and str(Path(chain.folder, "jobs")).encode() in words


def last_metrics(job: Submitted, since: float) -> str:
    """Return the newest that a job has measured, in a few words; empty when there is nothing.

    Args:
        job: Of a chain.
        since: When that was submitted; what is older is another's.
    """
    experiment = Path(job.experiment)
    stages = [job.stage] if job.stage else ["qat", "calibrated", "float"]
    for stage in stages:
        for read in (_summary, _logged):
            if text := read(experiment / stage, since):
                return text if job.stage else f"{stage} {text}"
    return ""


def _summary(folder: Path, since: float) -> str:
    path = folder / "summary.json"
    try:
        if path.stat().st_mtime < since:
            return ""
        content = json.loads(path.read_text())
        return f"{content['metric']} {100 * content['value']:.1f} %"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _logged(folder: Path, since: float) -> str:
    """Return the last line of mmcv's log of a training."""
    logs = [path for path in folder.glob("*.log.json") if path.stat().st_mtime >= since]
    logs.sort(key=lambda path: path.stat().st_mtime)
    for line in reversed(logs[-1].read_text().splitlines() if logs else []):
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if "epoch" in row:
                names = [n for n in ("mAP", "bbox_mAP", "loss") if n in row]
                measured = "".join(f" {n} {row[n]:.4g}" for n in names)
                return f"epoch {row['epoch']} step {row.get('iter', '')}{measured}"
    return ""
