"""An mmcv hook that writes the resident memory of its rank, for `benchmarks.memory`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmcv.runner import HOOKS, Hook


@HOOKS.register_module(force=True)
class ResidentMemoryHook(Hook):  # type: ignore[misc]
    """Append ``step,MiB`` to ``folder/rank_N.csv`` every ``interval`` steps.

    Args:
        folder: An existing folder.
        interval: Steps between two lines.
    """

    def __init__(self, folder: str, interval: int) -> None:
        self.path = Path(folder) / f"rank_{os.environ.get('RANK', '0')}.csv"
        self.interval = interval

    def before_run(self, runner: Any) -> None:
        """Start the file again."""
        self.path.write_text("")

    def after_train_iter(self, runner: Any) -> None:
        """Write a line."""
        if not self.every_n_iters(runner, self.interval):
            return
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        with self.path.open("a") as file:
            file.write(f"{runner.iter + 1},{mib:.1f}\n")
