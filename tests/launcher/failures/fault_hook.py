"""Inject faults at a chosen step of a chosen rank, by an mmcv hook in a config.

A config names it with ``custom_imports = dict(imports=['tests.launcher.failures.fault_hook'])`` and
``custom_hooks = [dict(type='FaultHook', what='kill', rank=1, step=3, marker='...')]``. A fault
happens once: it leaves a marker file, so it does not happen again in the resumed training.
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
    """Inject a fault before a step.

    Args:
        what: A key of `SIGNALS`, sent to this process, or the name of a method below.
        rank: The rank with the fault; -1 for all.
        step: Number of finished steps before it.
        marker: File that is written when the fault happens; ``{rank}`` in it is replaced.
        argument: Argument of the method.
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
        """Set one image of this step's batch to NaN."""
        runner.data_batch["img"].data[0][0].fill_(float("nan"))

    def delay(self, runner: Any) -> None:
        time.sleep(self.argument)

    def hold(self, runner: Any) -> None:
        """Wait until this process is asked to stop, as torchrun does for a new host."""
        end = time.monotonic() + 120
        while runner.supervision.signals.first is None and time.monotonic() < end:
            time.sleep(0.05)

    def remove(self, runner: Any) -> None:
        Path(self.argument).unlink()

    def diverge(self, runner: Any) -> None:
        """Change one weight on this rank only."""
        module: nn.Module = getattr(runner.model, "module", runner.model)
        with torch.no_grad():
            next(module.parameters()).view(-1)[0].add_(1e-3)

    def lose_gpu(self, runner: Any) -> None:
        """Raise what torch raises when a GPU has fallen off the bus."""
        raise torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors")

    def fill_memory(self, runner: Any) -> None:
        """Raise what torch raises when a GPU's memory is full."""
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    def extra_loss(self, runner: Any) -> None:
        """Let the head return an additional loss from now on, on this rank only."""
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
    """Return the file into which a rank writes its process id, for other ranks."""
    return Path(os.environ["FAULT_FOLDER"]) / f"pid_{rank}"


if "FAULT_FOLDER" in os.environ and multiprocessing.parent_process() is None:
    pid_file(int(os.environ.get("RANK", "0"))).write_text(str(os.getpid()))


@PIPELINES.register_module(force=True)
class FaultAtImage:
    """A step of a test pipeline that kills a rank when some rank loads its n-th image.

    Args:
        by: The rank that loads.
        victim: The rank that dies; -1 for all of two.
        image: Number of images that ``by`` loads before.
        marker: As for `FaultHook`.
        what: A key of `SIGNALS`.
        named: A part of the names of the images that count.
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
            # This process last, because it may be one of them.
            for victim in sorted(victims, key=lambda rank: rank == self.by):
                os.kill(int(pid_file(victim).read_text()), SIGNALS[self.what])
        return results


@PIPELINES.register_module(force=True)
class HoldAtImage:
    """A step of a test pipeline that blocks all threads of rank 0, as a long json.load does.

    Args:
        seconds: Duration; it happens once.
        marker: As for `FaultHook`.
    """

    def __init__(self, seconds: int, marker: str) -> None:
        self.seconds, self.marker = seconds, Path(marker)

    def __call__(self, results: Any) -> Any:
        if os.environ.get("RANK", "0") == "0" and not self.marker.exists():
            self.marker.write_text(f"{time.time()}")
            ctypes.PyDLL(None).sleep(self.seconds)
        return results
