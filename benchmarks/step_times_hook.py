"""An mmcv hook that writes when each step of its rank was done, for `benchmarks.tracking`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mmcv.runner import HOOKS, Hook


@HOOKS.register_module(force=True)
class StepTimesHook(Hook):  # type: ignore[misc]
    """Write ``epoch,seconds,CPU seconds`` of each step to a file when the training ends.

    Args:
        path: Of the file; its folder exists.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.lines: list[str] = []

    def after_train_iter(self, runner: Any) -> None:
        """Remember the step."""
        self.lines.append(f"{runner.epoch},{time.monotonic():.6f},{time.process_time():.6f}\n")

    def after_run(self, runner: Any) -> None:
        """Write all."""
        self.path.write_text("".join(self.lines))
