"""Who writes a folder, as the file of its lock says."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dq.proc import began_of
from dq.tracking.record.liveness import this_process

_NAME = re.compile(r"\.writer\.([0-9]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """The process that writes a folder.

    Attributes:
        token: Different for every writer.
        process: From `dq.tracking.record.liveness.this_process`.
        since: Start of writing, to show to people: seconds since 1970 by its own clock.
        job: Number of a Slurm job, empty if there is none.
        attempt: How often that job had been started before.
    """

    token: str = field(default_factory=lambda: secrets.token_hex(8))
    process: Mapping[str, Any] = field(default_factory=this_process)
    since: float = field(default_factory=time.time)
    job: str = field(default_factory=lambda: os.environ.get("SLURM_JOB_ID", ""))
    attempt: int = field(default_factory=lambda: int(os.environ.get("SLURM_RESTART_COUNT") or 0))

    def __str__(self) -> str:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.process.get('pid')} on {self.process.get('host')} since {began}"

    def follows(self, other: Writer) -> bool:
        """Whether this is the same Slurm job, requeued after the other."""
        return bool(self.job) and self.job == other.job and self.attempt > other.attempt

    def lives(self) -> bool | None:
        """Whether the process lives; None if it is not visible from here."""
        here = this_process()
        if not here["boot"] or any(self.process.get(k) != here[k] for k in ("boot", "space")):
            return None
        began = began_of(int(self.process.get("pid") or 0))
        return began is not None and began == self.process.get("began")


def writer_of(folder: Path) -> Writer | None:
    """Return who holds a folder's lock, alive or dead; None if nobody does, or it is unreadable.

    Nothing is written.
    """
    try:
        last = newest(folder)
        found = None if last is None else read(last[1])
    except OSError:
        return None
    return None if found is None else found[1]


def all_locks(folder: Path) -> list[tuple[int, Path]]:
    """Return the locks in a folder, each with its number, the newest last."""
    found = [(_NAME.fullmatch(entry.name), folder / entry.name) for entry in os.scandir(folder)]
    return sorted((int(match[1]), path) for match, path in found if match)


def newest(folder: Path) -> tuple[int, Path] | None:
    """Return the lock with the highest number, which is the one that counts; None without any."""
    found = all_locks(folder)
    return found[-1] if found else None


def read(path: Path) -> tuple[bytes, Writer] | None:
    """Return a lock's count and its holder; None if the file is gone.

    A file with damaged content counts as held by an unknown process.
    """
    try:
        count, _, text = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    try:
        return count, Writer(**json.loads(text))
    except (ValueError, TypeError):
        return count, Writer(token="", process={}, since=0.0, job="", attempt=0)
