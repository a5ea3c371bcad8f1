"""Run the chains of several families, some at the same time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from launcher.coverage.chain import Chain
from launcher.coverage.processes import Limits
from launcher.coverage.row import Row


def chains(
    families: Sequence[str], folder: Path, limits: Limits, *, jobs: int
) -> Iterator[tuple[str, Row]]:
    """Run the chains of families; yield each family's name and row as soon as it has ended.

    Args:
        families: Names; empty for all.
        folder: For data, configs, and all files of the chains.
        limits: Of time and memory for each step.
        jobs: Number of chains at the same time.

    Raises:
        ValueError: A family does not exist, the packages that draw the data are missing, or the
            folder cannot be written.
        RuntimeError: Its disk is full.
    """
    from dq.data.disk import explained
    from dq.data.tiny_coco import write_tiny_coco
    from dq.detector.survey.families import representatives

    paths = representatives(families)
    with explained(folder):
        data = write_tiny_coco(folder / "data")
        # One after the other, because mmcv changes sys.path to read a config, and threads share it.
        configs = {name: write_config(path, data, folder / name) for name, path in paths.items()}
    with ThreadPoolExecutor(jobs) as pool:
        running = {
            pool.submit(Chain(config, config.parent, limits).row): name
            for name, config in configs.items()
        }
        for future in as_completed(running):
            yield running[future], future.result()


def write_config(path: Path, data: Path, folder: Path) -> Path:
    """Write a small version of one of mmdet's configs into a new folder; return its path."""
    from dq.detector.survey.tiny_config import tiny_config

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = folder / path.name
    config.write_text(tiny_config(path, data))
    return config
