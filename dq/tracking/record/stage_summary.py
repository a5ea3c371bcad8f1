"""The summary of a finished stage: its metrics, the data, and the checkpoint it wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from dq.tracking.record.json_file import write_json

FILE_NAME = "summary.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSummary:
    """The result of one stage.

    Attributes:
        stage: ``float``, ``calibrated``, ``qat`` or ``eval``.
        key: Digest of everything that affects the result; a stage with an equal key need not run
            again.
        metric: Name of the value shown in tables.
        value: That metric, 0 to 1.
        start: The same before the first step of a quantized training, if known.
        metrics: All metrics of the evaluation.
        checkpoint: The stage's model, relative to the summary's folder.
        sha256: SHA-256 of that file.
        parent: ``sha256`` of the checkpoint it started from.
        range_digest: Digest of all quantizer state, equal on all ranks.
        world_size: Number of ranks.
        seconds: Wall time of the stage.
        num_quantizers: Number of quantizers, for weights and activations.
        run_id: Id of the run, as in ``run.json``.
        parent_run: Id of the run that wrote the checkpoint it started from.
        bits: Name of the integer format, ``float32`` for none.
        model_bytes: Size of weights and quantizer parameters at their widths.
        images_per_s: Speed of the final evaluation on all ranks.
        classes: Average precision of each class at IoU 0.5.
        finished: Seconds since 1970.
        chosen: The checkpoint of a quantized training that became its result; None for the last.
        last_drop: How far its last evaluation was below its start, 0 to 1.
    """

    stage: str
    key: str
    metric: str
    value: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    checkpoint: str | None = None
    sha256: str | None = None
    parent: str | None = None
    range_digest: str | None = None
    world_size: int = 1
    seconds: float = 0.0
    num_quantizers: int = 0
    run_id: str | None = None
    parent_run: str | None = None
    bits: str | None = None
    model_bytes: int | None = None
    images_per_s: float | None = None
    classes: Mapping[str, float] = field(default_factory=dict)
    finished: float | None = None
    start: float | None = None
    chosen: str | None = None
    last_drop: float = 0.0

    @property
    def drop(self) -> float:
        """How far a quantized training ended below its start; 0 if it did not."""
        return 0.0 if self.start is None else max(0.0, self.start - self.value)


def write_summary(folder: Path, summary: StageSummary) -> Path:
    """Write the summary whole or not at all, and return its path."""
    path = folder / FILE_NAME
    write_json(path, asdict(summary))
    return path


def read_summary(folder: Path) -> StageSummary | None:
    """Return the summary in ``folder``, or None if there is none or it cannot be read."""
    try:
        content = json.loads((folder / FILE_NAME).read_text())
        known = {f.name for f in fields(StageSummary)}
        summary = StageSummary(**{k: v for k, v in content.items() if k in known})
        return summary if isinstance(summary.value, int | float) else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def is_current(folder: Path, key: str) -> StageSummary | None:
    """Return the summary if it has this key and its checkpoint has the recorded SHA-256."""
    summary = read_summary(folder)
    if summary is None or summary.key != key or summary.checkpoint is None:
        return None
    path = folder / summary.checkpoint
    if not path.is_file() or sha256_of(path) != summary.sha256:
        return None
    return summary


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(*parts: object) -> str:
    """Return a digest of what affects a result; parts are compared as text."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(str(part).encode() + b"\0")
    return digest.hexdigest()
