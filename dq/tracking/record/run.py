"""The identity of a run: its id, its settings, and the checkpoint it started from."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dq.tracking.record.json_file import write_json
from dq.tracking.record.secrets import hide, hide_in_words
from dq.version import NAME, version

FILE_NAME = "run.json"
PACKAGES = ("torch", "torchvision", "mmcv-full", "mmdet", "numpy", "wandb")
GIT_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One stage of an experiment as it was started.

    Attributes:
        id: Stable: a checkpoint carries it, and a resumed run keeps it.
        experiment: Name that the stages of an experiment share; W&B's group.
        stage: ``float``, ``calibrated``, ``qat``, ``eval``; W&B's job type.
        config: The config's values by dotted name.
        source: Everything else that affects results: commit, versions, devices, data set.
        parent: Id of the run that wrote the checkpoint it started from.
        parent_sha256: SHA-256 of that checkpoint.
        tags: The user's tags.
        project: W&B's project.
        entity: W&B's entity; None for the user's default.
        status: ``running``, ``finished``, ``stopped`` (by a signal) or ``failed``.
        exit_code: Set when it has ended.
        started: Seconds since 1970.
        ended: Seconds since 1970.
        best: Largest values of validation metrics by name: ``{"value": ..., "step": ...}``.
        process: The process that writes it; see `dq.tracking.record.liveness`.
        training: For a stage that trains, from its start or resumption on: ``steps``, the step at
            which it is to end; ``first``, the step at which this process began.
        error: Why it failed, in one line; None if it did not.
    """

    id: str
    experiment: str
    stage: str
    config: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    parent: str | None = None
    parent_sha256: str | None = None
    tags: tuple[str, ...] = ()
    project: str = "dq-launcher"
    entity: str | None = None
    status: str = "running"
    exit_code: int | None = None
    started: float = 0.0
    ended: float | None = None
    best: Mapping[str, Any] = field(default_factory=dict)
    process: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, int] = field(default_factory=dict)
    error: str | None = None


def new_run_id() -> str:
    """Return eight random hexadecimal digits; the training's random generators are not used."""
    return secrets.token_hex(4)


def write_run(folder: Path, run: Run) -> None:
    """Write ``run.json`` whole or not at all, without the config's secrets.

    Raises:
        ValueError: The folder is not writable.
    """
    path = folder / FILE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {**asdict(run), "config": hide(run.config)})
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {error.strerror}; choose another --work-dir"
        ) from error


def read_run(folder: Path) -> Run | None:
    """Return the run of a folder, or None if there is none or it cannot be read."""
    try:
        content = json.loads((folder / FILE_NAME).read_text())
        known = {f.name for f in fields(Run)}
        run = Run(**{k: v for k, v in content.items() if k in known})
        mappings = (run.config, run.source, run.best, run.process, run.training)
        is_sound = all(isinstance(each, Mapping) for each in mappings)
        is_sound &= isinstance(run.started, int | float) and isinstance(run.status, str)
        is_sound &= run.ended is None or isinstance(run.ended, int | float)
        return replace(run, tags=tuple(run.tags)) if is_sound else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def flattened(values: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts and lists of dicts to one dict of dotted names; other lists stay whole.

    Args:
        values: A config.
        prefix: Prefix of the names.
    """
    if isinstance(values, Mapping):
        pairs = [(str(k), v) for k, v in values.items()]
    elif isinstance(values, list | tuple) and any(isinstance(v, Mapping) for v in values):
        pairs = [(str(i), v) for i, v in enumerate(values)]
    else:
        return {prefix: list(values) if isinstance(values, tuple) else values}
    found: dict[str, Any] = {}
    for name, value in pairs:
        found |= flattened(value, f"{prefix}.{name}" if prefix else name)
    return found


def source(folder: Path) -> dict[str, Any]:
    """Describe code and machine: commit, versions, host, command.

    Args:
        folder: A folder inside the repository, if it is one.
    """
    versions = {NAME: version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "git_commit": _git(folder, "rev-parse", "HEAD"),
        "git_changed": bool(_git(folder, "status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "packages": versions,
        "host": platform.node(),
        "cpus": os.cpu_count(),
        "command": " ".join(hide_in_words(sys.argv)),
    }


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            timeout=GIT_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
