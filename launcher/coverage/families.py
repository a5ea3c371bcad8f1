"""The chains of several families, some at a time."""

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
    """Yield each family's name with what became of it, as soon as it is there.

    Args:
        families: Which; all when empty.
        folder: Where data, configs, and all that the chains write go.
        limits: For each step.
        jobs: How many chains at a time.

    Raises:
        ValueError: There is no such family, or the packages that draw the data are missing.
    """
    from dq.data.tiny_coco import write_tiny_coco
    from dq.detector.survey.families import representatives

    data = write_tiny_coco(folder / "data")
    # One after the other: mmcv reads a config by way of sys.path, which all threads share.
    configs = {
        name: write_config(path, data, folder / name)
        for name, path in representatives(families).items()
    }
    with ThreadPoolExecutor(jobs) as pool:
        running = {
            pool.submit(Chain(config, config.parent, limits).row): name
            for name, config in configs.items()
        }
        for future in as_completed(running):
            yield running[future], future.result()


def write_config(path: Path, data: Path, folder: Path) -> Path:
    """Return the file of a config of mmdet, made small, in an empty folder of its own."""
    from dq.detector.survey.tiny_config import tiny_config

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = folder / path.name
    config.write_text(tiny_config(path, data))
    return config
