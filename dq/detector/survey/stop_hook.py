"""Stop a training after its first step, as a scheduler does, to try resuming."""

from __future__ import annotations

import os
import signal
from typing import Any

from mmcv.runner import HOOKS, Hook


@HOOKS.register_module(force=True)
class StopOnceHook(Hook):  # type: ignore[misc]
    """Ask this process to stop in its first step; a resumed training is past that step."""

    def after_train_iter(self, runner: Any) -> None:
        """Send the signal of a scheduler."""
        if runner.iter == 0:
            os.kill(os.getpid(), signal.SIGTERM)
