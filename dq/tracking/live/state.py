"""The state of an experiment's folder: its stages, and how far the newest one is."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dq.counted import counted
from dq.one_writer.writer import Writer, writer_of
from dq.tracking.live.health import Health, health_of
from dq.tracking.live.progress import Progress, StageFollower
from dq.tracking.record.file_time import written_at
from dq.tracking.record.liveness import state_of
from dq.tracking.record.rows import METRICS
from dq.tracking.record.run import FILE_NAME as RUN_FILE
from dq.tracking.record.run import Run, read_run
from dq.tracking.record.stage_summary import FILE_NAME as SUMMARY_FILE
from dq.tracking.record.stage_summary import read_summary

RUNNING, WAITING = "running", "not begun"
# What a work dir has before its first stage begins: logs, a job's files, a lock.
_TRACES = ("logs", "submissions")
# After this time without a line in a log, ranks do not wait for each other any more.
PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageState:
    """One stage of an experiment.

    Attributes:
        name: Name of its folder.
        state: ``running``, ``finished``, ``stopped``, ``failed``, ``died``, or as
            `dq.tracking.record.liveness.state_of` says; ``unreadable`` if its record is damaged.
        bits: Name of its integer format, ``float32`` for none.
        metric: Name of its result.
        value: Its result, 0 to 1; None if there is none yet.
        seconds: Time since its start, or that it took.
        error: Why it failed.
    """

    name: str
    state: str
    bits: str | None = None
    metric: str | None = None
    value: float | None = None
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """An experiment as its files say.

    Attributes:
        folder: Its folder.
        state: ``not begun``, ``died`` before the first stage, or that of the stage that is shown.
        is_alive: Whether a process may still write it.
        stages: In the order of their starts.
        current: Name of the stage that is shown: the one that runs, else the newest.
        command: The command line that started it.
        where: Number of ranks, device and process of that stage.
        progress: Progress of that stage; None without a row.
        health: Health of its quantizers; None if they were not measured.
    """

    folder: str
    state: str
    is_alive: bool
    stages: tuple[StageState, ...] = ()
    current: str | None = None
    command: str = ""
    where: str = ""
    progress: Progress | None = None
    health: Health | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReader:
    """Read an experiment again and again; rows that were read are not read again.

    Args:
        folder: The work dir of a command, or the folder of one stage.
        stage: Name of the stage to show; None for the one that runs, else the newest.
    """

    folder: Path
    stage: str | None = None
    _followers: dict[str, StageFollower] = field(default_factory=dict)

    def read(self, *, now: float | None = None) -> RunState:
        """Return the current state.

        Args:
            now: Seconds since 1970; the time of the call by default.

        Raises:
            ValueError: The folder is gone.
        """
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is gone")
        now = time.time() if now is None else now
        runs = dict(sorted(_runs(self.folder), key=_start))
        writer = writer_of(self.folder)
        is_held = writer is not None and writer.lives() is not False
        if not runs:
            return self._before_the_first(writer, now)
        states = {name: _state(self.folder / name, run, now) for name, run in runs.items()}
        current = self._chosen(states)
        run, follower = runs[current], self._follower(current)
        follower.update()
        at_work = states[current].state == RUNNING
        return RunState(
            folder=str(self.folder),
            state=states[current].state,
            is_alive=is_held or any(each.state == RUNNING for each in states.values()),
            stages=tuple(states.values()),
            current=current,
            command="" if run is None else str(run.source.get("command") or ""),
            where="" if run is None else _where(run),
            progress=follower.progress(run, now if at_work else None),
            health=health_of(self.folder / current),
        )

    def _before_the_first(self, writer: Writer | None, now: float) -> RunState:
        """Return the state of a work dir without a stage."""
        lives = None if writer is None else writer.lives() is not False
        if lives is None:
            # A job that waits for its turn, or ranks that wait for each other.
            logs = [written_at(path) for path in (self.folder / "logs").glob("*")]
            is_new = now - max(logs, default=0.0) < PATIENCE_S
            lives = is_new or (self.folder / "submissions").is_dir()
        state = "died" if writer is not None and not lives else WAITING
        return RunState(folder=str(self.folder), state=state, is_alive=lives)

    def _chosen(self, states: Mapping[str, StageState]) -> str:
        if self.stage is not None and self.stage in states:
            return self.stage
        running = [name for name, each in states.items() if each.state == RUNNING]
        return (running or list(states))[-1]

    def _follower(self, name: str) -> StageFollower:
        return self._followers.setdefault(name, StageFollower(self.folder / name))


def reader_of(folder: Path) -> RunReader:
    """Return a reader for a run's work dir or a stage's folder.

    Raises:
        ValueError: It is not a folder, has no run in it, or has several.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the --work-dir of a run")
    if _is_stage(folder):
        whole = folder.resolve()
        return RunReader(folder=whole.parent, stage=whole.name)
    if any(_is_stage(folder / name) for name in _folders(folder)):
        return RunReader(folder=folder)
    # A lock has a name of its own in the folder, even if its process was killed.
    if any((folder / name).is_dir() for name in _TRACES) or writer_of(folder) is not None:
        return RunReader(folder=folder)
    several = [
        name for name in _folders(folder)
        if any(_is_stage(folder / name / stage) for stage in _folders(folder / name))
    ]  # fmt: skip
    if several:
        names = ", ".join(several[:4]) + (", ..." if len(several) > 4 else "")
        raise ValueError(
            f"{folder} has {counted(len(several), 'run[s]')} in it ({names}); give one of them,"
            f" such as {folder / several[0]}, or see all with `launcher compare"
            f" {shlex.quote(str(folder))}`"
        )
    raise ValueError(
        f"{folder} has no run in it (no stage with {RUN_FILE} or {SUMMARY_FILE}); give the"
        " --work-dir of a run"
    )


def _folders(folder: Path) -> list[str]:
    try:
        return sorted(e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != ".")
    except OSError:
        return []


def _is_stage(folder: Path) -> bool:
    return (folder / RUN_FILE).is_file() or (folder / SUMMARY_FILE).is_file()


def _runs(folder: Path) -> Iterator[tuple[str, Run | None]]:
    """Yield the stages with their runs; None for one whose record cannot be read."""
    for name in _folders(folder):
        if _is_stage(folder / name):
            yield name, read_run(folder / name)


def _start(stage: tuple[str, Run | None]) -> tuple[float, str]:
    name, run = stage
    return (0.0 if run is None else run.started), name


def _state(folder: Path, run: Run | None, now: float) -> StageState:
    summary, measured = read_summary(folder), _engine_result(folder)
    if run is None:
        state = "unreadable" if summary is None and measured is None else "finished"
    elif run.status == RUNNING:
        state = state_of(run.process, _written(folder), now=now)
    else:
        state = run.status
    is_over = state != RUNNING
    end = _end(folder, run, now) if is_over else now
    result = measured if summary is None else (summary.metric, summary.value)
    metric, value = (None, None) if result is None or not is_over else result
    return StageState(
        name=folder.name,
        state=state,
        bits=None if run is None else run.source.get("bits"),
        metric=metric,
        value=value,
        seconds=None if run is None or not run.started else max(0.0, end - run.started),
        error=None if run is None else run.error,
    )


def _engine_result(folder: Path) -> tuple[str, float] | None:
    """Return metric and value of an exported model's evaluation, which has no run of its own."""
    try:
        content = json.loads((folder / SUMMARY_FILE).read_text())
        return str(content["metric"]), float(content["integer"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _end(folder: Path, run: Run | None, now: float) -> float:
    """Return when a stage ended; one that was killed when it wrote its last file."""
    if run is not None and run.ended is not None:
        return run.ended
    return _written(folder) or now


def _written(folder: Path) -> float:
    return max(written_at(folder / name) for name in (METRICS, RUN_FILE))


def _where(run: Run) -> str:
    ranks = run.source.get("world_size")
    parts: list[Any] = []
    if isinstance(ranks, int):
        parts.append(f"{counted(ranks, 'rank[s]')} on {run.source.get('device')}")
    if run.process.get("pid"):
        parts.append(f"process {run.process['pid']} on {run.process.get('host')}")
    return ", ".join(parts)
