"""An mmcv hook that writes the times of each step, for `benchmarks.tracking` and `.launch`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmcv.runner import HOOKS, Hook

from dq.detector.hooks.tracking import TrackingHook


@HOOKS.register_module(force=True)
class StepTimesHook(Hook):  # type: ignore[misc]
    """Write ``epoch,seconds,CPU seconds,tracking's seconds`` of each step when the training ends.

    The last column is the time spent in the tracking hook so far.

    Args:
        path: Path of the file, in an existing folder.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.lines: list[str] = []
        self.tracking_s = 0.0

    def before_run(self, runner: Any) -> None:
        """Time all calls of the tracking hook."""
        for hook in runner.hooks:
            if isinstance(hook, TrackingHook):
                for name in ("after_train_iter", "after_train_epoch"):
                    setattr(hook, name, self._timed(getattr(hook, name)))

    def _timed(self, function: Callable[[Any], None]) -> Callable[[Any], None]:
        def call(runner: Any) -> None:
            began = time.perf_counter()
            function(runner)
            self.tracking_s += time.perf_counter() - began

        return call

    def after_train_iter(self, runner: Any) -> None:
        """Remember the step."""
        times = (time.monotonic(), time.process_time(), self.tracking_s)
        self.lines.append(f"{runner.epoch}," + ",".join(f"{t:.6f}" for t in times) + "\n")

    def after_run(self, runner: Any) -> None:
        """Write all."""
        self.path.write_text("".join(self.lines))
