"""Submit jobs to Slurm, all of them or none."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence

import submitit

from slurm.placeless import without_rank_variables
from slurm.plan import Job
from slurm.record import Chain, Submitted, keep, recorded
from slurm.state import cancel
from slurm.task import task_of
from slurm.text import Place, check_place, parameters

log = logging.getLogger(__name__)
# Errors of sbatch that are the user's mistakes -> advice. Any other error is the cluster's.
_ADVICE = (
    ("invalid partition", "`sinfo -s` lists partitions; give --partition or set it in the profile"),
    ("account", "`sacctmgr show associations user=$USER` lists accounts; give --account"),
    ("qos", "`sacctmgr show qos` lists them; give --qos or leave it out"),
    ("feature specification", "`sinfo -o '%P %f'` lists features; change --constraint"),
    ("node configuration", "no node has so much; ask for fewer GPUs, CPUs or memory of a node"),
    (
        "more processors",
        "`sinfo -o '%P %D %c %G'` lists what there is; ask for fewer --nodes, GPUs, tasks or CPUs",
    ),
    ("node count", "ask for fewer --nodes, or another --partition"),
    ("time limit", "give a shorter --time, or another --partition"),
    ("invalid generic resource", "`sinfo -o '%P %G'` lists GPUs; change --gpus-per-node"),
    ("unrecognized option", "fix the name in [sbatch] of the profile"),
    ("invalid", "fix that value"),
)


_PREFIX = re.compile(r"^sbatch: (error: )?(Batch job submission failed: )?")


def need_slurm() -> None:
    """Raise ValueError if there is no Slurm to submit to."""
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise ValueError(
            "sbatch is not on this machine's PATH; submit from a login node of the cluster, or"
            " run here with --cluster local"
        )


def submit(jobs: Sequence[Job], place: Place) -> Chain:
    """Submit the jobs to Slurm and return their record; on an error cancel those already submitted.

    A record that cannot be written is such an error: nobody could find the jobs.

    Raises:
        OSError: The record cannot be written.
        ValueError: Slurm refuses the user's request.
        RuntimeError: Slurm does not answer.
    """
    check_place(place)
    submitted: dict[str, list[Submitted]] = {}
    try:
        for job in jobs:
            after = submitted[job.after][0].job_id.split("_")[0] if job.after else None
            submitted[job.name] = _submit(job, place, after)
        chain = Chain(
            name=place.chain,
            executor="slurm",
            folder=str(place.folder),
            created=time.time(),
            jobs=tuple(s for group in submitted.values() for s in group),
        )
        keep(chain)
    except BaseException:
        _undo([group[0].job_id.split("_")[0] for group in submitted.values()])
        raise
    return chain


def _undo(numbers: Sequence[str]) -> None:
    """Cancel the jobs; a failure is only a warning, because why they are cancelled matters more."""
    if not numbers:
        return
    try:
        # Those that wait for others first, so that none of them starts.
        cancel(list(reversed(numbers)))
    except RuntimeError as error:
        log.warning(
            "job %s may still be waiting or running: %s; then `scancel %s`",
            ", ".join(numbers),
            error,
            " ".join(numbers),
        )


def _submit(job: Job, place: Place, after: str | None) -> list[Submitted]:
    executor = submitit.SlurmExecutor(place.jobs, max_num_timeout=job.profile.max_restarts)
    if job.profile.python:
        executor.python = job.profile.python
    executor.update_parameters(wckey=None, **parameters(job, place, after))
    tasks = [task_of(element, job.profile) for element in job.elements]
    with without_rank_variables(), _silent(), _explained(job):
        handles = executor.submit_array(tasks)
    return [
        recorded(str(handle.job_id), job, element, handle.num_tasks)
        for handle, element in zip(handles, job.elements, strict=True)
    ]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep submitit from printing sbatch's output; it is in the error."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


@contextlib.contextmanager
def _explained(job: Job) -> Iterator[None]:
    try:
        yield
    except submitit.core.utils.FailedJobError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        said = "; ".join(_PREFIX.sub("", line) for line in lines) or "no reason given"
        for sign, advice in _ADVICE:
            if sign in said.lower():
                raise ValueError(f"Slurm refuses {job.name}: {said}; {advice}") from error
        raise RuntimeError(
            f"Slurm did not take {job.name}: {said}; `scontrol ping` tells whether it answers"
        ) from error
