"""The folders that a command writes: one command at a time, and nothing left of those that died."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dq.dist.work.on_main_rank import on_main_rank
from dq.one_writer import hold
from dq.whole_file import remove_drafts
from launcher.failure import WORLD_ERROR

log = logging.getLogger(__name__)
# Below the work dir. What trains and calibrates holds all of it; the others one folder each, so
# that a checkpoint can be evaluated while the training goes on.
WRITTEN = {
    "train": "",
    "calibrate": "",
    "qat": "",
    "run": "",
    "quantize": "quantize",
    "eval": "eval",
    "export": "export",
    "analyze": "analyze",
}


class WorkDir:
    """What a command holds; it is given back at the end of `held`."""

    def __init__(self) -> None:
        self._locks = ExitStack()
        self._held: list[Path] = []

    def hold(self, folder: Path) -> None:
        """Hold a folder until the command's end; every rank must call it, the main one holds it.

        One inside a folder that is held already needs no lock of its own.

        Raises:
            ValueError: On all ranks: another command writes it, or it cannot be written.
        """
        on_main_rank(lambda: self._hold(folder.resolve()))

    def _hold(self, folder: Path) -> None:
        if any(folder.is_relative_to(held) for held in self._held):
            return
        lock = hold(folder)
        self._locks.callback(lock.release)
        self._held.append(folder)
        lock.watch(_end)
        _tidy(folder)

    def release(self) -> None:
        """Give all folders back."""
        self._locks.close()
        self._held.clear()


@contextmanager
def held(arguments: argparse.Namespace, experiment: Path) -> Iterator[WorkDir]:
    """Hold what a command writes for the body; every rank must call it.

    Raises:
        ValueError: On all ranks: another command writes it, or it cannot be written.
    """
    work_dir = WorkDir()
    try:
        name = WRITTEN[arguments.command]
        backend = getattr(arguments, "backend", "torch")
        if backend != "torch":
            name = f"{name}_{backend.replace('-', '_')}"
        work_dir.hold(experiment / name)
        yield work_dir
    finally:
        work_dir.release()


def _tidy(folder: Path) -> None:
    """Remove what dead processes have left half-written, where no other command may be at work."""
    inside = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    others = [path for path in inside if any(path.glob(".writer.*"))]
    # Whoever writes a folder of its own may write into this one too, a table say.
    for path in [path for path in inside if path not in others] if others else [folder]:
        remove_drafts(path)


def _end(line: str) -> None:
    """End the process at once: whatever it does next may be to a file that is another's now."""
    log.error("%s", line)
    print(f"error: {line}", file=sys.stderr, flush=True)
    os._exit(WORLD_ERROR)
