"""A training stopped after its first step, as by a scheduler: for trying that it can be resumed."""

from __future__ import annotations

import os
import signal
from typing import Any

from mmcv.runner import HOOKS, Hook


@HOOKS.register_module(force=True)
class StopOnceHook(Hook):  # type: ignore[misc]
    """Ask this process to stop in its first step; a training that goes on has that behind it."""

    def after_train_iter(self, runner: Any) -> None:
        """Send the signal that schedulers send."""
        if runner.iter == 0:
            os.kill(os.getpid(), signal.SIGTERM)
