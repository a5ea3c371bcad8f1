"""Lock the folders that a command writes, and remove half-written files of dead processes."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dq.dist.work.on_main_rank import on_main_rank
from dq.one_writer.lock import hold
from dq.whole_file import remove_drafts
from launcher.failure import WORLD_ERROR

log = logging.getLogger(__name__)
# Folder within the work dir. Commands that train or calibrate lock the whole work dir. The others
# lock one folder each, so that a checkpoint can be evaluated during the training.
WRITTEN = {
    "train": "",
    "calibrate": "",
    "qat": "",
    "run": "",
    "quantize": "quantize",
    "eval": "eval",
    "export": "export",
    "analyze": "analyze",
    "show": "show",
}


class WorkDir:
    """The folders that a command has locked; `held` unlocks them at its end."""

    def __init__(self) -> None:
        self._locks = ExitStack()
        self._held: list[Path] = []

    def hold(self, folder: Path) -> None:
        """Lock a folder until the command's end; every rank must call it, the main rank locks.

        A folder inside a locked one needs no lock of its own.

        Raises:
            ValueError: On all ranks: another command writes the folder, or it cannot be written.
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
        """Unlock all folders."""
        self._locks.close()
        self._held.clear()


@contextmanager
def held(arguments: argparse.Namespace, experiment: Path) -> Iterator[WorkDir]:
    """Lock the folder that a command writes, within the context; every rank must call it.

    Raises:
        ValueError: On all ranks: another command writes the folder, or it cannot be written.
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
    """Remove half-written files of dead processes, except where another command may be working."""
    inside = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    others = [path for path in inside if any(path.glob(".writer.*"))]
    # A command that has locked a subfolder may also write into this folder, for example a table.
    for path in [path for path in inside if path not in others] if others else [folder]:
        remove_drafts(path)


def _end(line: str) -> None:
    """End the process at once, because another command may own its files now."""
    log.error("%s", line)
    print(f"error: {line}", file=sys.stderr, flush=True)
    os._exit(WORLD_ERROR)
