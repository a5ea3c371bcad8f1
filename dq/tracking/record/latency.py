"""How many times as fast an experiment's exported model is as in float, as its folder has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dq.tracking.record.file_time import written_at
from dq.tracking.record.json_file import write_json
from dq.tracking.record.stage_summary import FILE_NAME as SUMMARY

EXPORT = "export"
# The evaluations of the exported model, one for each engine.
EVALUATIONS = "eval_*"
FILE_NAME = "latency.json"


def write_latency(folder: Path, model: str, latency: Mapping[str, Any]) -> None:
    """Write the measured speed of an exported model into its folder; it replaces an older one.

    Args:
        folder: Folder of the exported models.
        model: Name of the file.
        latency: Fields of `dq.quant.latency.result.Latency`.
    """
    write_json(folder / FILE_NAME, {"model": model, "latency": latency})


def read_times_as_fast(experiment: Path) -> float | None:
    """Return the last measured median of an experiment's folder; None if there is none."""
    files = [
        *experiment.glob(f"{EVALUATIONS}/{SUMMARY}"),
        *experiment.glob(f"{EXPORT}/{FILE_NAME}"),
    ]
    for path in sorted(files, key=written_at, reverse=True):
        try:
            return float(json.loads(path.read_text())["latency"]["times_as_fast"]["median"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
