"""The program of each task of a job: run the launcher as a rank, and act on its exit code."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import submitit
from submitit.core.job_environment import JobEnvironment

from slurm.end import write_end
from slurm.placeless import RANK_NAMES
from slurm.plan import Element
from slurm.profile import Profile
from slurm.text import FAILURE_MARK, mark_name, own_number

# The launcher's exit code for "stopped by a signal, resume with --resume".
STOPPED = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# Time for the first task to write its mark and for Slurm to end the others.
FAREWELL_S = 60.0
# How much later than another rank a rank may receive the signal that Slurm sends to all.
SKEW_S = 3.0


class _SignalReceived(BaseException):
    """A signal came before the launcher could handle it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task(submitit.helpers.Checkpointable):
    """Run the launcher in this process as the rank given by submitit.

    The launcher handles signals itself: all ranks stop after the same step, a checkpoint is
    written, the exit code is 75. Then the first task leaves a mark for the batch script, which
    requeues the job (a container has no scontrol), and the others wait to be ended. The next
    attempt resumes from the newest checkpoint by itself, because Slurm counts the restarts. A job
    with a rank that failed or died by itself is not requeued: see `_tell_failure` and `slurm.text`.

    Attributes:
        words: The launcher's command line.
        ranks_per_node: Ranks that torchrun starts; 0 if each task is a rank.
        max_restarts: How often the job may be restarted.
    """

    words: tuple[str, ...]
    ranks_per_node: int = 0
    max_restarts: int = 20

    def __call__(self) -> int:
        """Return 0, or exit the process with the launcher's exit code."""
        place = submitit.JobEnvironment()
        attempt = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        on_cluster = place.cluster == "slurm"
        if on_cluster:
            _forget_earlier_attempts(place)
        if attempt > self.max_restarts:
            print(
                f"error: started for the {attempt + 1}th time, which is more than --max-restarts"
                f" {self.max_restarts} allows; find out why, then submit again to continue",
                file=sys.stderr,
            )
            raise SystemExit(1)
        for name in RANK_NAMES:  # Perhaps inherited from the submitting shell.
            os.environ.pop(name, None)
        os.environ.update(rank_variables(place, self.ranks_per_node > 0))
        if on_cluster:
            print(f"{_who(place)}, attempt {attempt + 1}", flush=True)
        code = self._launch(place)
        if place.cluster != "debug" and place.global_rank == 0:
            write_end(Path(os.environ["SUBMITIT_FOLDER"]), place.job_id, code, attempt)
        if code == STOPPED and on_cluster:
            self._request_requeue(place, attempt)
        elif code and on_cluster and place.global_rank > 0:
            _tell_failure()
        if code:
            raise SystemExit(code)
        return code

    def _launch(self, place: Any) -> int:
        try:
            # Nothing that comes after the launcher's end may change how the task ends: a signal
            # would kill the process while Python ends, and a finished job would have failed.
            with _signals_raise(ignored_later=place.cluster != "debug"):
                if self.ranks_per_node > 0:
                    return _under_torchrun(self.words, self.ranks_per_node, place)
                return _in_this_process(self.words)
        except _SignalReceived as signal_name:
            print(f"stopped by {signal_name} before anything began", flush=True)
            return STOPPED

    def _request_requeue(self, place: Any, attempt: int) -> None:
        if place.global_rank == 0:
            if attempt >= self.max_restarts:
                print(
                    f"error: stopped by a signal, and --max-restarts {self.max_restarts} is used"
                    " up; submit again to continue",
                    file=sys.stderr,
                )
                return
            Path(os.environ["SUBMITIT_FOLDER"], mark_name(os.environ)).touch()
            return
        # A nonzero exit code ends the other tasks, perhaps the first one before it has left a mark.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        time.sleep(FAREWELL_S)


def task_of(element: Element, profile: Profile) -> Task:
    """Return the task of a job, on a cluster or on this machine."""
    words = list(element.words)
    if profile.cpus_per_task and element.computes:
        # They are the rank's own and must not be divided again. The user's options come later.
        words[1:1] = ["--threads", str(profile.cpus_per_task)]
    return Task(
        words=tuple(words),
        ranks_per_node=profile.ranks_per_node if profile.torchrun else 0,
        max_restarts=profile.max_restarts,
    )


def rank_variables(place: JobEnvironment, of_torchrun: bool) -> Mapping[str, str]:
    """Return torchrun's variables for this task; none if torchrun itself will set them."""
    if of_torchrun or place.num_tasks == 1:
        return {}
    return {
        "RANK": str(place.global_rank),
        "WORLD_SIZE": str(place.num_tasks),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.num_tasks // place.num_nodes),
        "GROUP_RANK": str(place.node),
        "GROUP_WORLD_SIZE": str(place.num_nodes),
    }


def torchrun_words(
    words: tuple[str, ...], ranks: int, place: JobEnvironment, environ: Mapping[str, str]
) -> list[str]:
    """Return the command line of torchrun on this node."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    if place.num_nodes == 1:
        command += ["--standalone"]
    else:
        command += [
            *("--nnodes", str(place.num_nodes), "--rdzv-backend", "c10d"),
            *("--rdzv-endpoint", f"{environ['MASTER_ADDR']}:{environ['MASTER_PORT']}"),
            *("--rdzv-id", own_number(environ)),
            # torchrun compares the end point's name with its host's to find out where the store
            # is, and a cluster's name for a node may differ from the host's.
            *("--rdzv-conf", f"is_host={int(place.node == 0)}"),
            *("--local-addr", environ.get("SLURMD_NODENAME", place.hostname)),
        ]
    command += ["--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"]
    return [*command, "-m", "launcher", *words]


def _in_this_process(words: tuple[str, ...]) -> int:
    sys.argv = ["launcher", *words]
    try:
        runpy.run_module("launcher", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    return 0


def _under_torchrun(words: tuple[str, ...], ranks: int, place: Any) -> int:
    """Start this node's torchrun and wait for it, also after signals: it receives them too."""
    environ = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    process = subprocess.Popen(torchrun_words(words, ranks, place, os.environ), env=environ)
    asked: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        # Slurm signals all processes of a job; submitit's local executor only this one.
        if not asked and place.cluster != "slurm":
            process.send_signal(number)
        asked.append(number)

    former = {number: signal.signal(number, forward) for number in (*SIGNALS, signal.SIGINT)}
    try:
        code = process.wait()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    # torchrun's own exit code only says that a rank failed.
    return STOPPED if code and asked else (code if code >= 0 else 128 - code)


@contextmanager
def _signals_raise(*, ignored_later: bool) -> Iterator[None]:
    def handle(number: int, frame: FrameType | None) -> None:
        raise _SignalReceived(signal.Signals(number).name)

    former = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, signal.SIG_IGN if ignored_later else handler)


def _tell_failure() -> None:
    """Leave a mark that this task failed by itself, so that its job is not requeued.

    When it ends, srun sends SIGTERM to the other tasks, and they stop as if Slurm had asked them
    to. But if this task receives a signal too, the whole job was asked to stop, and this task has
    only lost the others, which received it earlier.
    """
    try:
        with _signals_raise(ignored_later=True):
            time.sleep(SKEW_S)
    except _SignalReceived:
        return
    Path(os.environ["SUBMITIT_FOLDER"], mark_name(os.environ, FAILURE_MARK)).touch()


def _forget_earlier_attempts(place: Any) -> None:
    """Remove files of an earlier attempt that submitit would trip over or take for new ones."""
    paths = place.paths
    paths.result_pickle.unlink(missing_ok=True)
    for path in (paths.result_pickle, paths.submitted_pickle):
        path.with_suffix(path.suffix + ".save_tmp").unlink(missing_ok=True)


def _who(place: Any) -> str:
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
    node = os.environ.get("SLURMD_NODENAME", place.hostname)
    return (
        f"task {place.global_rank} of {place.num_tasks} on {node}, local {place.local_rank},"
        f" GPUs {gpus}"
    )
