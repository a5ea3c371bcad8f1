"""Hand jobs to Slurm, to this machine or to this process, all of them or none."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import submitit

from slurm.end import read_end
from slurm.plan import Element, Job
from slurm.profile import Profile
from slurm.record import Chain, Submitted, keep
from slurm.task import Task
from slurm.text import Place, check_place, parameters

# What sbatch says -> what helps; the user's mistakes. Anything else is the cluster's.
_MENDS = (
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
    ("unrecognized option", "mend the name in [sbatch] of the profile"),
    ("invalid", "mend that value"),
)


_PREFIX = re.compile(r"^sbatch: (error: )?(Batch job submission failed: )?")


def task_of(element: Element, profile: Profile) -> Task:
    """Return what a task of the job does."""
    words = list(element.words)
    threads = profile.cpus_per_task
    if threads and "--work-dir" in words and "--threads" not in words:
        # Slurm binds each rank to its own CPUs: they are not to be shared again.
        words[2:2] = ["--threads", str(threads)]
    return Task(
        words=tuple(words),
        ranks_per_node=profile.ranks_per_node if profile.torchrun else 0,
        max_restarts=profile.max_restarts,
    )


def need_slurm() -> None:
    """Raise ValueError where there is no Slurm to submit to."""
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise ValueError(
            "sbatch is not on this machine's PATH; submit from a login node of the cluster, or"
            " run here with --cluster local"
        )


def submit(jobs: Sequence[Job], place: Place) -> Chain:
    """Submit the jobs to Slurm and return their record; on an error those before are cancelled.

    Raises:
        ValueError: Slurm refuses what the user asked for.
        RuntimeError: Slurm does not answer.
    """
    check_place(place)
    submitted: dict[str, list[Submitted]] = {}
    try:
        for job in jobs:
            after = submitted[job.after][0].job_id.split("_")[0] if job.after else None
            submitted[job.name] = _submit(job, place, after)
    except BaseException:
        cancel({s.job_id.split("_")[0] for group in submitted.values() for s in group})
        raise
    chain = _chain(place, "slurm", [s for group in submitted.values() for s in group])
    keep(chain)
    return chain


def _submit(job: Job, place: Place, after: str | None) -> list[Submitted]:
    executor = submitit.SlurmExecutor(place.jobs, max_num_timeout=job.profile.max_restarts)
    if job.profile.python:
        executor.python = job.profile.python
    executor.update_parameters(wckey=None, **parameters(job, place, after))
    tasks = [task_of(element, job.profile) for element in job.elements]
    with _no_allocation(), _silent(), _explained(job):
        handles = executor.submit_array(tasks)
    return [
        _submitted(handle.job_id, job, element, handle.num_tasks)
        for handle, element in zip(handles, job.elements, strict=True)
    ]


def _submitted(job_id: str, job: Job, element: Element, tasks: int) -> Submitted:
    return Submitted(
        job_id=str(job_id),
        name=job.name,
        label=element.label,
        words=element.words,
        experiment=str(element.experiment),
        stage=element.stage,
        tasks=tasks,
    )


def _chain(place: Place, executor: str, jobs: Sequence[Submitted]) -> Chain:
    return Chain(
        name=place.chain,
        executor=executor,
        folder=str(place.folder),
        created=time.time(),
        jobs=tuple(jobs),
    )


def run_here(jobs: Sequence[Job], place: Place) -> int:
    """Run the jobs one after another on this machine and return the first exit code that is not 0.

    Each is a process of submitit's local executor, with torchrun in it for several ranks, which
    ends them all when one dies.
    """
    done: list[Submitted] = []
    for job in jobs:
        for element in job.elements:
            ranks = job.profile.ranks_per_node
            executor = submitit.LocalExecutor(place.jobs)
            values = {"timeout_min": 60 * 24 * 365, "stderr_to_stdout": True}
            executor.update_parameters(**values, gpus_per_node=job.profile.gpus_per_node)
            task = Task(words=element.words, ranks_per_node=ranks if ranks > 1 else 0)
            with _environment(job, place):
                handle: Any = executor.submit(task)
            done.append(_submitted(handle.job_id, job, element, 1))
            chain = _chain(place, "local", done)
            keep(chain)
            print(f"{element.label or job.name}: {chain.log(done[-1], 0)}", flush=True)
            code = _await(handle)
            if code:
                print(f"{element.label or job.name} ended with exit code {code}", file=sys.stderr)
                return code
    return 0


def _await(handle: Any) -> int:
    """Return the exit code of a local job; interrupted, end it first."""
    try:
        while handle._process.poll() is None:
            time.sleep(0.2)
    except BaseException:
        handle._process.terminate()
        handle._process.wait(timeout=60)
        raise
    if handle.paths.result_pickle.is_file() and handle.exception() is None:
        return 0
    end = read_end(Path(handle.paths.folder), handle.job_id)
    return int(end["code"]) if end else 1


@contextlib.contextmanager
def _environment(job: Job, place: Place) -> Iterator[None]:
    """Give a local job what a batch script gives a job on a cluster, as far as it needs it."""
    path = [str(place.folder / "code"), os.environ.get("PYTHONPATH", ""), str(place.cwd)]
    more = {name: str(value) for name, value in job.profile.environment.items()}
    if place.snapshot:
        more |= {"PYTHONPATH": ":".join(filter(None, path)), "PYTHONSAFEPATH": "1"}
    more |= {
        name: os.environ.get(name, value)
        for name, value in {"WANDB_RUN_GROUP": place.group, "WANDB_JOB_TYPE": job.name}.items()
    }
    former = dict(os.environ)
    os.environ.update(more)
    if not job.profile.gpus_per_node:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(former)


def run_in_process(jobs: Sequence[Job], place: Place) -> int:
    """Run the jobs one after another in this very process, for a debugger; return the exit code."""
    for job in jobs:
        for element in job.elements:
            handle = submitit.DebugExecutor(place.jobs).submit(Task(words=element.words))
            try:
                handle.results()
            except SystemExit as end:
                return int(end.code or 0)
    return 0


def cancel(job_ids: set[str]) -> None:
    """Let Slurm cancel jobs; those that have ended already are no mistake."""
    if job_ids:
        subprocess.run(["scancel", *sorted(job_ids)], capture_output=True, check=False, timeout=60)


@contextlib.contextmanager
def _no_allocation() -> Iterator[None]:
    """Hide the allocation that this process runs in, if it does: a job is not part of another."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    with submitit.helpers.clean_env():
        yield


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep submitit from printing what sbatch says; it is in the error."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


@contextlib.contextmanager
def _explained(job: Job) -> Iterator[None]:
    try:
        yield
    except submitit.core.utils.FailedJobError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        said = "; ".join(_PREFIX.sub("", line) for line in lines) or "no reason given"
        for sign, mend in _MENDS:
            if sign in said.lower():
                raise ValueError(f"Slurm refuses {job.name}: {said}; {mend}") from error
        raise RuntimeError(
            f"Slurm did not take {job.name}: {said}; `scontrol ping` tells whether it answers"
        ) from error
