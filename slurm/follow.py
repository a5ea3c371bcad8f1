"""Print a log and follow it until its job has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from slurm.record import Chain, Submitted, chains
from slurm.state import states

PAUSE_S = 0.5
STATE_EVERY_S = 5.0


def await_begin(chain: Chain, job: Submitted) -> tuple[Chain, Submitted]:
    """Wait until a local job has started, or never will; return its state then.

    Args:
        chain: The chain of the job.
        job: A job without a number yet.
    """
    place = chain.jobs.index(job)
    while not job.job_id and not states(chain)[""].has_ended:
        time.sleep(PAUSE_S)
        # The record may be gone, removed with its experiment; then only its process is looked at.
        chain = next((c for c in chains() if c.folder == chain.folder), chain)
        job = chain.jobs[place]
    return chain, job


def lines_of(path: Path, *, has_ended: Callable[[], bool] | None = None) -> Iterator[str]:
    """Yield a log's text as it is written.

    Args:
        path: May be missing at first when it is followed.
        has_ended: Asked every few seconds; None to stop at the file's present end.
    """
    while not path.is_file():
        if has_ended is None or has_ended():
            return
        time.sleep(PAUSE_S)
    with path.open(encoding="utf-8", errors="replace") as file:
        asked, over = time.monotonic(), False
        while True:
            text = file.read(65536)
            if text:
                yield text
                continue
            if has_ended is None or over:
                return
            time.sleep(PAUSE_S)
            if time.monotonic() - asked > STATE_EVERY_S:
                asked, over = time.monotonic(), has_ended()
