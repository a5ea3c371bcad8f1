"""A task's end: what a signal does after the launcher, and what the other tasks are told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slurm.text import FAILURE_MARK, mark_name

pytestmark = pytest.mark.cpu

PROGRAM = """
import os, signal, threading
import slurm.task
from slurm.task import Task

slurm.task._in_this_process = lambda words: {code}
slurm.task.SKEW_S = 1.0
if {later}:
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
try:
    Task(words=())()
finally:
    os.kill(os.getpid(), signal.SIGUSR2)
"""


def ended(folder: Path, *, rank: int, code: int, signalled: bool = False) -> int:
    """Run a task of two whose launcher ends with a code; return the process's exit code.

    SIGUSR2 comes after the task, while Python is still there.
    """
    variables = {
        "SUBMITIT_EXECUTOR": "slurm",
        "SUBMITIT_FOLDER": str(folder),
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(code=code, later=signalled)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode


@pytest.mark.parametrize(("rank", "code"), [(0, 0), (1, 0), (0, 75), (0, 1)])
def test_a_signal_after_the_launcher_changes_nothing(tmp_path: Path, rank: int, code: int) -> None:
    assert ended(tmp_path, rank=rank, code=code) == code
    assert [path.name for path in tmp_path.glob("*_requeue")] == (
        ["7_0_requeue"] if code == 75 else []
    )
    assert not list(tmp_path.glob(f"*_{FAILURE_MARK}"))


@pytest.mark.parametrize("signalled", [False, True])
def test_a_failure_is_told_unless_the_whole_job_was_asked_to_stop(
    tmp_path: Path, signalled: bool
) -> None:
    """A rank that is asked to stop a little later than the others has only lost them."""
    assert ended(tmp_path, rank=1, code=1, signalled=signalled) == 1
    mark = tmp_path / mark_name({"SLURM_JOB_ID": "7"}, FAILURE_MARK)
    assert mark.exists() is not signalled
