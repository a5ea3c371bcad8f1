"""The text of a job for sbatch."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

from slurm.plan import Job
from slurm.profile import sbatch_options

# A job's first task writes this file if the job must be requeued; see `slurm.task`.
REQUEUE_MARK = "requeue"
# Another task writes this file if it failed by itself, without a signal; see `slurm.task`.
FAILURE_MARK = "failed"
# srun's exit codes for a task that died by itself: 128 + SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE,
# SIGKILL (also by the kernel, when memory is full) or SIGSEGV.
DEATHS = "132 | 133 | 134 | 135 | 136 | 137 | 139"
# Exit codes after SIGUSR1 and SIGUSR2, which are sent only to warn a task of its end.
WARNINGS = "138 | 140"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Folders and names of the jobs submitted together.

    Attributes:
        chain: Their common name.
        folder: Folder of this submission: snapshot, logs, records.
        cwd: The user's folder; relative paths in configs start there.
        group: W&B's group of their runs.
        snapshot: Whether code was copied.
    """

    chain: str
    folder: Path
    cwd: Path
    group: str
    snapshot: bool = True

    @property
    def jobs(self) -> Path:
        """Return the folder of submitit: job texts, pickles and the ranks' output."""
        return self.folder / "jobs"


def check_place(place: Place) -> None:
    """Raise ValueError if Slurm would change the folder's name."""
    for path in (place.folder, place.cwd):
        wrong = [c for c in "%\\\n" if c in str(path)]
        if wrong:
            raise ValueError(
                f"{str(path)!r} has {wrong[0]!r} in it, which Slurm replaces in file names;"
                " choose another --work-dir, or submit from another folder"
            )


def parameters(job: Job, place: Place, dependency: str | None = None) -> dict[str, Any]:
    """Return the job's parameters for submitit's SlurmExecutor.

    Args:
        job: The job.
        place: Its folders and names.
        dependency: The number of the job that must have ended successfully before.
    """
    profile = job.profile
    gpus: int | str | None = profile.gpus_per_node or None
    if gpus and profile.gpu_type:
        gpus = f"{profile.gpu_type}:{gpus}"
    values: dict[str, Any] = {
        "job_name": f"{place.chain}:{job.name}",
        "time": profile.minutes,
        "ntasks_per_node": 1 if profile.torchrun else profile.ranks_per_node,
        "cpus_per_task": _cpus(job),
        "gpus_per_node": gpus,
        "mem": f"{profile.mem_gb}GB" if profile.mem_gb else None,
        "exclusive": profile.exclusive or None,
        "signal_delay_s": profile.signal_delay_s,
        "stderr_to_stdout": True,
        "wckey": None,
        "dependency": f"afterok:{dependency}" if dependency else None,
        "array_parallelism": profile.parallel,
        "setup": _setup(job, place),
        "srun_args": _srun(job),
        "teardown": _teardown(job, place),
    }
    # submitit has names for some of sbatch's options and passes the others on.
    named = inspect.signature(_make_sbatch_string).parameters
    own = sbatch_options(profile)
    values |= {name: value for name, value in own.items() if name in named}
    extra = {name: value for name, value in own.items() if name not in named}
    extra |= {"chdir": str(place.cwd), "requeue": True, **profile.sbatch}
    if dependency:
        # Cancel jobs that wait for a failed stage; otherwise they would wait forever.
        extra["kill-on-invalid-dep"] = "yes"
    return {**{k: v for k, v in values.items() if v is not None}, "additional_parameters": extra}


def command(job: Job, place: Place) -> str:
    """Return the shell command that starts a task's Python; it is submitit's own."""
    python = job.profile.python or shlex.quote(sys.executable)
    return f"{python} -u -m submitit.core._submit {shlex.quote(str(place.jobs))}"


def job_text(job: Job, place: Place, dependency: str | None = None) -> str:
    """Return the whole job text that submitit passes to sbatch."""
    more: dict[str, Any] = {"map_count": len(job.elements)} if job.is_array else {}
    values = {"wckey": None, **parameters(job, place, dependency)}
    text: str = _make_sbatch_string(
        command=command(job, place), folder=place.jobs, **values, **more
    )
    return text


def _cpus(job: Job) -> int | None:
    cpus, ranks = job.profile.cpus_per_task, job.profile.ranks_per_node
    return cpus * ranks if cpus and job.profile.torchrun else cpus


def _srun(job: Job) -> list[str]:
    profile = job.profile
    # A dead rank does not end a job by itself: the others would wait for it.
    words = ["--kill-on-bad-exit=1"]
    if cpus := _cpus(job):
        # Since Slurm 22.05 srun does not inherit it from sbatch.
        words.append(f"--cpus-per-task={cpus}")
    # GPUs are not bound: each rank sees all GPUs of its node and uses the one of its local rank. If
    # each were bound to one, they could not reach each other's memory. --gpu-bind=none would leave
    # CUDA_VISIBLE_DEVICES unset, so jobs that share a node would use each other's GPUs.
    if profile.container:
        words.append(f"--container-image={profile.container}")
        mounts = [*profile.container_mounts]
        if mounts:
            words.append(f"--container-mounts={','.join(mounts)}")
    return [*words, *profile.srun]


def _setup(job: Job, place: Place) -> list[str]:
    quote = shlex.quote
    lines = [f"export {name}={quote(str(v))}" for name, v in job.profile.environment.items()]
    lines += job.profile.setup
    if place.snapshot:
        lines += [
            "# The code at submission; other modules come from the folder of the submission.",
            f"export PYTHONPATH={quote(str(place.folder / 'code'))}"
            f'"${{PYTHONPATH:+:$PYTHONPATH}}":{quote(str(place.cwd))} PYTHONSAFEPATH=1',
        ]
    return [
        *lines,
        "# The last element has the array's own job number, which means all elements.",
        'self="$SLURM_JOB_ID"',
        '[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || self="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"',
        "# Where the ranks meet: the first node, on a free port. Do not try the next port:",
        "# the array's next element uses it and may be starting there too.",
        'export MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"',
        "MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))",
        'while (exec 3<>"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null; do'
        " MASTER_PORT=$((20000 + (MASTER_PORT + 1009) % 10000)); done",
        "export MASTER_PORT",
        *_tracking(job, place),
        "# The warning is for the ranks; this script ignores it, so that it can requeue the job.",
        "trap : TERM USR1 USR2",
    ]


def _tracking(job: Job, place: Place) -> list[str]:
    """Pass the run's group, notes and tags to W&B, unless the user has set its variables."""
    tags = "slurm-$self" + (",array-$SLURM_ARRAY_TASK_ID" if job.is_array else "")
    return [
        "# For W&B, if it is used.",
        f"export WANDB_RUN_GROUP=${{WANDB_RUN_GROUP:-{shlex.quote(place.group)}}}",
        'export WANDB_NOTES="${WANDB_NOTES:+$WANDB_NOTES; }slurm job $self on $SLURM_JOB_NODELIST"',
        f'export WANDB_TAGS="${{WANDB_TAGS:+$WANDB_TAGS,}}{tags}"',
    ]


def own_number(environ: Mapping[str, str]) -> str:
    """Return the job's number, ``12_3`` for an element of an array, as in `launcher jobs`."""
    array = environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{environ['SLURM_ARRAY_TASK_ID']}" if array else environ["SLURM_JOB_ID"]


def mark_name(environ: Mapping[str, str], mark: str = REQUEUE_MARK) -> str:
    """Return the name of the file with which an attempt of a job asks to be requeued, or not to."""
    attempt = environ.get("SLURM_RESTART_COUNT") or "0"
    return f"{own_number(environ)}_{attempt}_{mark}"


def _teardown(job: Job, place: Place) -> list[str]:
    mark = f'{shlex.quote(str(place.jobs))}/"${{self}}_${{SLURM_RESTART_COUNT:-0}}'
    return [
        "code=$?",
        "# The first rank leaves a mark if a signal stopped it after it wrote a checkpoint. A job",
        "# that was cancelled, or that Slurm requeues itself, is no longer RUNNING.",
        f'mark={mark}"',
        "# A task that is only starting cannot handle a warning and is killed by it.",
        f'case "$code" in {WARNINGS}) touch "${{mark}}_{REQUEUE_MARK}";; esac',
        "# When a rank dies or fails, srun sends SIGTERM to the others, which stop as if they were",
        "# asked to. The rank would fail again, so the job is not requeued.",
        "why=",
        f'case "$code" in {DEATHS}) why="a rank died (exit code $code)";; esac',
        f'[ ! -e "${{mark}}_{FAILURE_MARK}" ] || why="a rank failed"',
        f'if [ -e "${{mark}}_{REQUEUE_MARK}" ] && [ -n "$why" ]; then',
        '    echo "error: $why, and its log says more; the job is not requeued"',
        f'elif [ -e "${{mark}}_{REQUEUE_MARK}" ]; then',
        "    for _ in 1 2 3 4 5 6; do  # Slurm's controller may be down for a while.",
        '        if state="$(squeue -h -j "$self" -o %T)"; then',
        '            [ "$state" = RUNNING ] || break',
        '            scontrol requeue "$self" && sleep 60 && break  # Slurm ends the script here.',
        "        fi",
        "        sleep 10",
        "    done",
        "fi",
        "exit $code",
    ]
