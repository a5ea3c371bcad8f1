"""A hook that holds a training before a step until a signal comes, like a very long step."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from mmcv.runner import HOOKS, Hook

LIMIT_S = 240.0


@HOOKS.register_module(force=True)
class GateHook(Hook):
    """Wait until a signal has come; only in the first attempts.

    Args:
        step: Number of steps done before it.
        marker: File whose existence says that a rank waits; ``{attempt}``, ``{rank}`` and, in an
            array, ``{element}`` (array number and index) are replaced.
        attempts: Number of the job's attempts that wait.
    """

    def __init__(self, step: int, marker: str, attempts: int = 1) -> None:
        self.step = step
        self.attempt = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        self.waits = self.attempt < attempts
        rank = os.environ.get("RANK", "0")
        names = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")
        element = "_".join(os.environ.get(name, "") for name in names)
        self.marker = Path(marker.format(attempt=self.attempt, rank=rank, element=element))

    def before_train_iter(self, runner: Any) -> None:
        if not self.waits or runner.iter < self.step:
            return
        self.waits = False
        self.marker.write_text(str(time.time()))
        signals = getattr(signal.getsignal(signal.SIGUSR2), "__self__", None)
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end and getattr(signals, "first", None) is None:
            time.sleep(0.1)
