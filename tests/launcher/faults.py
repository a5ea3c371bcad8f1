"""Faults that strike a training at a chosen step of a chosen rank, as an mmcv hook of a config.

A config names it with ``custom_imports = dict(imports=['tests.launcher.faults'])`` and
``custom_hooks = [dict(type='FaultHook', what='kill', rank=1, step=3, marker='...')]``. A fault
strikes once: the marker it leaves keeps it from striking the resumed training again.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from mmcv.runner import HOOKS, Hook
from mmdet.datasets import PIPELINES
from torch import nn

SIGNALS = {
    "kill": signal.SIGKILL,
    "SIGTERM": signal.SIGTERM,
    "SIGUSR1": signal.SIGUSR1,
    "SIGUSR2": signal.SIGUSR2,
    "SIGINT": signal.SIGINT,
    "SIGHUP": signal.SIGHUP,
    "freeze": signal.SIGSTOP,
}


@HOOKS.register_module(force=True)
class FaultHook(Hook):
    """Do something terrible before a step.

    Args:
        what: A key of `SIGNALS`, sent to this process, or the name of a method below.
        rank: Whom it strikes; -1 for all.
        step: Steps done before it.
        marker: A file that says that it has struck; ``{rank}`` in it is replaced.
        argument: What the method takes.
    """

    def __init__(self, what: str, rank: int, step: int, marker: str, argument: Any = None) -> None:
        self.what, self.rank, self.step, self.argument = what, rank, step, argument
        self.me = int(os.environ.get("RANK", "0"))
        self.marker = Path(marker.format(rank=self.me))

    def before_train_iter(self, runner: Any) -> None:
        if self.rank not in (-1, self.me) or runner.iter != self.step or self.marker.exists():
            return
        self.marker.write_text(f"{time.time()}")
        if self.what in SIGNALS:
            os.kill(os.getpid(), SIGNALS[self.what])
        else:
            getattr(self, self.what)(runner)

    def nan(self, runner: Any) -> None:
        """Spoil one image of this step's batch."""
        runner.data_batch["img"].data[0][0].fill_(float("nan"))

    def delay(self, runner: Any) -> None:
        time.sleep(self.argument)

    def hold(self, runner: Any) -> None:
        """Stand still until somebody asks this process to stop, as torchrun does for a new host."""
        end = time.monotonic() + 120
        while runner.supervision.signals.first is None and time.monotonic() < end:
            time.sleep(0.05)

    def remove(self, runner: Any) -> None:
        Path(self.argument).unlink()

    def diverge(self, runner: Any) -> None:
        """Change one weight of this rank alone."""
        module: nn.Module = getattr(runner.model, "module", runner.model)
        with torch.no_grad():
            next(module.parameters()).view(-1)[0].add_(1e-3)

    def extra_loss(self, runner: Any) -> None:
        """Let the head return one loss more from now on, on this rank."""
        head = getattr(runner.model, "module", runner.model).bbox_head
        before = head.loss

        def loss(*given: Any, **named: Any) -> Any:
            found = before(*given, **named)
            return {**found, "loss_extra": [sum(found["loss_cls"]) * 0]}

        head.loss = loss

    def kill_worker(self, runner: Any) -> None:
        workers = multiprocessing.active_children()
        assert workers
        os.kill(workers[0].pid or 0, signal.SIGKILL)


def pid_file(rank: int) -> Path:
    """Return where a rank writes its process id, for others to find it."""
    return Path(os.environ["FAULT_FOLDER"]) / f"pid_{rank}"


if "FAULT_FOLDER" in os.environ and multiprocessing.parent_process() is None:
    pid_file(int(os.environ.get("RANK", "0"))).write_text(str(os.getpid()))


@PIPELINES.register_module(force=True)
class FaultAtImage:
    """A step of a test pipeline that kills a rank when some rank loads its n-th image.

    Args:
        by: The rank that loads.
        victim: The rank that dies; -1 for all of two.
        image: How many images ``by`` loads before.
        marker: As for `FaultHook`.
        what: A key of `SIGNALS`.
        named: What the names of those images have in them.
    """

    def __init__(
        self, by: int, victim: int, image: int, marker: str, what: str = "kill", named: str = ""
    ) -> None:
        self.by, self.victim, self.left, self.marker = by, victim, image, Path(marker)
        self.what, self.named = what, named

    def __call__(self, results: Any) -> Any:
        self.left -= self.named in str(results["img_info"])
        here = int(os.environ.get("RANK", "0")) == self.by
        if self.left < 0 and here and not self.marker.exists():
            self.marker.write_text(f"{time.time()}")
            victims = [0, 1] if self.victim < 0 else [self.victim]
            # Itself last: it may be one of them.
            for victim in sorted(victims, key=lambda rank: rank == self.by):
                os.kill(int(pid_file(victim).read_text()), SIGNALS[self.what])
        return results


@PIPELINES.register_module(force=True)
class HoldAtImage:
    """A step of a test pipeline that lets no other thread of rank 0 run, as a long json.load does.

    Args:
        seconds: For so long, once.
        marker: As for `FaultHook`.
    """

    def __init__(self, seconds: int, marker: str) -> None:
        self.seconds, self.marker = seconds, Path(marker)

    def __call__(self, results: Any) -> Any:
        if os.environ.get("RANK", "0") == "0" and not self.marker.exists():
            self.marker.write_text(f"{time.time()}")
            ctypes.PyDLL(None).sleep(self.seconds)
        return results
