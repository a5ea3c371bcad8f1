"""One run in W&B, built only from the files in its folder: rows, tables, pictures, the end.

Facts about W&B 0.31 that explain the calls here: any call may raise exceptions of other classes
than W&B's; after a failed online start an offline start with the same id fails until ``teardown``;
``step=`` is never passed, because a resumed run's rows would be refused; ``summary="max"`` merges
wrongly over the pieces of a resumed run, so best values are set explicitly; without a short flush
interval a kill loses fifteen seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dq.counted import counted
from dq.error_text import error_text, with_type
from dq.tracking.record.rows import METRICS, QUANTIZERS, Row
from dq.tracking.record.run import Run, read_run
from dq.tracking.wandb_copy.send_offline import mark_sent, number_piece
from dq.tracking.wandb_copy.turn import take_turn
from dq.tracking.wandb_copy.variables import job_type_of, name_of, tags_of
from dq.whole_file import write_whole

SENT = "wandb/sent.json"
# More than about one call per second makes files of gigabytes.
ROW_EVERY_S = 1.0
FLUSH_S = 2
MAX_TABLE_ROWS = 1000
MAX_FAILURES, MAX_STARTS = 3, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Time limits for W&B.

    Attributes:
        init_s: Seconds to start a run.
        finish_s: Seconds to end it.
    """

    init_s: float = 20.0
    finish_s: float = 30.0


class Mirror:
    """Copy a folder's run to W&B as it grows; errors of W&B are not raised.

    Args:
        folder: Folder of a stage, with ``run.json``.
        mode: ``online`` or ``offline``.
        limits: Time limits for start and end.
        say: Receives messages for the user.
    """

    def __init__(self, folder: Path, mode: str, limits: Limits, say: Callable[[str], None]) -> None:
        self.folder, self.mode, self.limits, self.say = folder, mode, limits, say
        found = read_run(folder)
        assert found is not None
        self.run_info: Run = found
        self.run: Any = None
        self.is_on = True
        self.failures = self.starts = 0
        self.waiting: Row | None = None
        self.last_train = 0.0
        self.readers = {name: _Follower(folder / name) for name in (METRICS, QUANTIZERS)}
        self.sent_step = -1
        self.turn: IO[bytes] | None = None
        self.arrived: Path | None = None
        self.begin_sizes = {name: reader.size() for name, reader in self.readers.items()}

    def open(self) -> None:
        """Start the run: online if requested and possible, else offline."""
        # The relay of a stopped training may still be finishing, with the same limits.
        self.turn = take_turn(self.folder, 2 * self.limits.finish_s + 5.0)
        self.sent_step = _sent_step(self.folder, self.run_info.id)
        self._begin()

    def _begin(self) -> None:
        os.environ.setdefault("WANDB_DATA_DIR", str(self.folder / "wandb"))
        os.environ.setdefault("WANDB_CACHE_DIR", str(self.folder / "wandb/cache"))
        try:
            import wandb
        except ImportError:
            self._switch_off("W&B is off: wandb is not installed (pip install wandb)")
            return
        for mode in ("online", "offline") if self.mode == "online" else ("offline",):
            try:
                self.starts += 1
                self.run = self._init(wandb, mode)
                self.mode = mode
                with contextlib.suppress(OSError):
                    number_piece(Path(self.run.settings.sync_dir))
                return
            except Exception as error:
                if mode == "online":
                    self.say(
                        f"W&B cannot be reached ({_reason(error)}); the run is kept offline,"
                        f" `launcher sync {shlex.quote(str(self.folder))}` sends it later"
                    )
                    # Otherwise an offline run with the same id cannot start.
                    with contextlib.suppress(Exception):
                        wandb.teardown()
                else:
                    self._switch_off(f"W&B is off: {_reason(error)}")

    def _init(self, wandb: Any, mode: str) -> Any:
        info = self.run_info
        wanted = {
            "mode": mode,
            "init_timeout": self.limits.init_s,
            "finish_timeout": self.limits.finish_s,
            "finish_timeout_raises": True,
            "x_transaction_log_flush_interval": FLUSH_S,
            "x_stats_pid": os.getppid(),
            "console": "off",
            "silent": True,
            "disable_git": True,
            "disable_code": True,
        }
        known = wandb.Settings.model_fields
        (self.folder / "wandb").mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            id=info.id,
            project=info.project,
            entity=info.entity,
            dir=str(self.folder),
            name=name_of(info.experiment, info.stage, os.environ),
            # These arguments override W&B's variables, which a cluster job sets.
            group=os.environ.get("WANDB_RUN_GROUP") or info.experiment,
            job_type=job_type_of(info.stage, os.environ),
            tags=tags_of(info.tags, os.environ),
            resume="allow",
            config=_config(info),
            settings=wandb.Settings(**{k: v for k, v in wanted.items() if k in known}),
        )
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")
        return run

    def pump(self) -> None:
        """Copy what was written since the last call."""
        if not self.is_on or self.run is None:
            return
        for place, row in self.readers[METRICS].new_rows():
            if not self._was_sent(METRICS, place, row):
                self._take(row)
        for place, row in self.readers[QUANTIZERS].new_rows():
            if not self._was_sent(QUANTIZERS, place, row):
                self._call(self._log_distribution, row)
                self._call(self._log_table, row)
        if self.is_on:
            self._write_sent()

    def close(self, exit_code: int) -> None:
        """Copy the rest and end the run with this exit code, within the limit."""
        self._end(exit_code)
        if self.turn is not None:
            self.turn.close()

    def mark(self) -> None:
        """Mark the run as completely sent; W&B's service must have ended by now.

        It still writes its file for a moment after the run's end, and a file that has grown since
        the mark counts as not sent.
        """
        if self.arrived is not None:
            with contextlib.suppress(OSError):
                mark_sent(self.arrived)

    def _end(self, exit_code: int) -> None:
        self.pump()
        self._release()
        if self.run is None or not self.is_on:
            return
        info = read_run(self.folder) or self.run_info
        for name, best in info.best.items():
            self._call(self._summarize, f"best/{name}", best["value"])
            self._call(self._summarize, f"best/{name}_step", best["step"])
        try:
            self.run.finish(exit_code=exit_code)
            if self.mode == "online":
                self.arrived = Path(self.run.settings.sync_dir)
        except Exception as error:
            self.say(
                f"W&B did not take the end of the run ({_reason(error)});"
                f" `launcher sync {shlex.quote(str(self.folder))}` sends the rest"
            )
        self.run = None

    def _was_sent(self, name: str, place: int, row: Row) -> bool:
        """Whether an earlier process has sent this row, which existed when this process started."""
        return place < self.begin_sizes[name] and int(row.get("step", 0)) <= self.sent_step

    def _take(self, row: Row) -> None:
        kind = row.get("kind")
        if kind == "train":
            self.waiting = row
            if float(row.get("time", 0.0)) - self.last_train >= ROW_EVERY_S:
                self._release()
            return
        self._release()
        if kind == "images":
            self._call(self._log_images, row)
        elif kind == "checkpoint":
            self._call(self._log_checkpoint, row)
        else:
            self._call(self._log_row, row)

    def _release(self) -> None:
        if self.waiting is not None:
            row, self.waiting = self.waiting, None
            self.last_train = float(row.get("time", 0.0))
            self._call(self._log_row, row)

    def _log_row(self, row: Row) -> None:
        kind = row["kind"]
        own = {k: v for k, v in row.items() if k not in ("kind", "step", "time", "epoch")}
        named: Row = {f"{kind}/{k}": v for k, v in own.items() if isinstance(v, bool | int | float)}
        if kind == "test":
            for name, value in named.items():
                self.run.summary[name] = value
        place = {k: row[k] for k in ("step", "epoch") if k in row}
        for name, value in own.items():
            if isinstance(value, str):
                self.run.summary[f"{kind}/{name}"] = value
        if named:
            self.run.log(named | place)

    def _log_table(self, row: Row) -> None:
        import wandb

        columns, rows = row["columns"], row["rows"][:MAX_TABLE_ROWS]
        shown = [i for i, c in enumerate(columns) if c != "histogram"]
        table = wandb.Table(
            columns=[columns[i] for i in shown], data=[[r[i] for i in shown] for r in rows]
        )
        self.run.log({"quantizers/table": table, "step": row["step"]})

    def _log_distribution(self, row: Row) -> None:
        """Log histograms over all quantizers, separate from the table, which costs more."""
        import wandb

        content: Row = {"step": row["step"]}
        for name in ("sqnr", "network_sqnr", "clipped", "oscillating", "moved"):
            if name in row["columns"]:
                place = row["columns"].index(name)
                values = [r[place] for r in row["rows"] if isinstance(r[place], int | float)]
                if values:
                    content[f"quantizers/{name}"] = wandb.Histogram(values)
                    content[f"quantizers/{name}_mean"] = sum(values) / len(values)
        self.run.log(content)

    def _log_images(self, row: Row) -> None:
        import wandb

        found = [self.folder / name for name in row["files"]]
        pictures = [wandb.Image(str(p), caption=p.stem) for p in found if p.is_file()]
        if pictures:
            self.run.log({"predictions": pictures, "step": row["step"]})

    def _log_checkpoint(self, row: Row) -> None:
        import wandb

        info = self.run_info
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in info.experiment)
        artifact = wandb.Artifact(
            f"{name}-{info.stage}",
            type="model",
            metadata={
                "sha256": row.get("sha256"),
                "parent": info.parent,
                "parent_sha256": info.parent_sha256,
            },
        )
        path = (self.folder / str(row["file"])).resolve()
        # By reference: the file is neither copied nor read.
        artifact.add_reference(path.as_uri(), name=path.name, checksum=False)
        self.run.log_artifact(artifact)
        self.run.summary["checkpoint/sha256"] = row.get("sha256")

    def _summarize(self, name: str, value: Any) -> None:
        self.run.summary[name] = value

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call the function and log its error.

        After `MAX_FAILURES` errors in a row W&B is started again, offline; it is switched off if it
        was started `MAX_STARTS` times already.
        """
        if not self.is_on or self.run is None:
            return
        try:
            function(*arguments)
            self.failures = 0
            return
        except Exception as error:
            self.failures += 1
            reason = _reason(error)
            # Goes to the relay's log file; the user is told when it becomes serious.
            print(f"W&B failed: {with_type(reason, error)}", file=sys.stderr, flush=True)
        if self.failures < MAX_FAILURES:
            return
        if self.starts < MAX_STARTS:
            self.say(
                f"W&B failed {counted(self.failures, 'time[s]')} ({reason}); it is restarted"
                " offline"
            )
            with contextlib.suppress(Exception):
                import wandb

                wandb.teardown()
            self.run, self.mode, self.failures = None, "offline", 0
            self._begin()
            self._call(function, *arguments)
        else:
            self._switch_off(
                f"W&B is off after {counted(self.failures, 'failure[s]')} in a row: {reason}"
            )

    def _switch_off(self, line: str) -> None:
        if self.is_on:
            self.is_on = False
            self.run = None
            self.say(f"{line}; {self.folder / METRICS} has everything")

    def _write_sent(self) -> None:
        step = max((reader.last_step for reader in self.readers.values()), default=-1)
        content = {"run": self.run_info.id, "step": max(step, self.sent_step)}
        with contextlib.suppress(OSError):
            write_whole(self.folder / SENT, json.dumps(content))


class _Follower:
    """Read the complete lines that were appended to a file since the last read."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset, self.last_step = path, 0, -1

    def size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def new_rows(self) -> Iterator[tuple[int, Row]]:
        """Yield position and content of each new row."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    place, self.offset = self.offset, self.offset + len(line)
                    try:
                        row = json.loads(line)
                        self.last_step = max(self.last_step, int(row.get("step", 0)))
                    except (ValueError, AttributeError):
                        continue
                    yield place, row
        except OSError:
            return


def _sent_step(folder: Path, run_id: str) -> int:
    try:
        content = json.loads((folder / SENT).read_text())
        return int(content["step"]) if content["run"] == run_id else -1
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def _config(info: Run) -> dict[str, Any]:
    lineage: Mapping[str, Any] = {
        "run/parent": info.parent,
        "run/parent_sha256": info.parent_sha256,
        "run/stage": info.stage,
        "run/experiment": info.experiment,
    }
    return {**info.config, **{f"source/{k}": v for k, v in info.source.items()}, **lineage}


def _reason(error: Exception) -> str:
    return error_text(error)[:200]
