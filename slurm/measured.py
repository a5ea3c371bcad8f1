"""The results of a job, without those that were in its folder before it was submitted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

SUMMARY, ROWS = "summary.json", "metrics.jsonl"
STAGES = ("qat", "calibrated", "float")
# Only the last rows are read, because the file may be large.
TAIL_BYTES = 16384


def result_digests(experiment: Path, stage: str) -> dict[str, str]:
    """Return the digests of the results in a folder, to recognize a job's own results later.

    File times are not used: the clock of the node that will write may differ from this one.

    Args:
        experiment: The job's folder.
        stage: Its stage; empty if it has several.
    """
    found = {}
    for name in [stage] if stage else STAGES:
        for file in (SUMMARY, ROWS):
            with contextlib.suppress(OSError):
                found[f"{name}/{file}"] = _digest(experiment / name / file)
    return found


def last_metrics(experiment: Path, stage: str, before: Mapping[str, str]) -> str:
    """Return the newest results of a job in a few words; empty if there are none.

    Args:
        experiment: The job's folder.
        stage: Its stage; empty if it has several.
        before: From `result_digests` at submission; these results are not the job's.
    """
    for name in [stage] if stage else STAGES:
        for file, read in ((SUMMARY, _summary), (ROWS, _logged)):
            path = experiment / name / file
            if not _is_new(path, before.get(f"{name}/{file}")):
                continue
            if text := read(path):
                return text if stage else f"{name} {text}"
    return ""


def _is_new(path: Path, before: str | None) -> bool:
    try:
        return _digest(path) != before
    except OSError:
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _summary(path: Path) -> str:
    try:
        content = json.loads(path.read_text())
        return f"{content['metric']} {100 * content['value']:.1f} %"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _logged(path: Path) -> str:
    """Return the last row that a training or its evaluation has logged."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return ""  # Removed at this moment.
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, Mapping) and row.get("kind") in ("train", "val"):
                names = [n for n in ("mAP", "bbox_mAP", "loss") if isinstance(row.get(n), float)]
                measured = "".join(f" {n} {row[n]:.4g}" for n in names)
                return f"epoch {row.get('epoch', 0):.4g} step {row.get('step', '')}{measured}"
    return ""
