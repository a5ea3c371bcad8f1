"""Record how a job ended next to its logs, because Slurm forgets it."""

from __future__ import annotations

import json
import time
from pathlib import Path

from dq.whole_file import write_whole


def write_end(folder: Path, job_id: str, code: int, attempt: int) -> None:
    """Write the exit code of an attempt of a job, whole or not at all."""
    path = folder / f"{job_id}_end.json"
    write_whole(path, json.dumps({"code": code, "attempt": attempt + 1, "time": time.time()}))


def read_end(folder: Path, job_id: str) -> dict[str, float] | None:
    """Return ``code``, ``attempt`` and ``time`` of a job's last end; None if there is none."""
    try:
        found: dict[str, float] = json.loads((folder / f"{job_id}_end.json").read_text())
    except (OSError, ValueError):
        return None
    return found
