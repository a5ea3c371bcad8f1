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
    from dq.detector.coverage import representatives

    configs = representatives(families)
    data = write_tiny_coco(folder / "data")
    with ThreadPoolExecutor(jobs) as pool:
        running = {
            pool.submit(one_chain, path, data, folder / name, limits): name
            for name, path in configs.items()
        }
        for future in as_completed(running):
            name, row = running[future], future.result()
            yield name, row


def one_chain(path: Path, data: Path, folder: Path, limits: Limits) -> Row:
    """Return what becomes of one config of mmdet, made small, in a folder of its own."""
    from dq.detector.tiny_config import tiny_config

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # A dot in a module's name is none that Python could import.
    config = folder / f"{path.stem}.py"
    config.write_text(tiny_config(path, data))
    return Chain(config, folder, limits).row()
