"""Write what a run produces: rows of numbers, tables of quantizers, images, its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dq.exit_codes import STOPPED_CODE
from dq.tracking.record.liveness import this_process
from dq.tracking.record.rows import METRICS, QUANTIZERS, RowFile, begin_rows, rows_of_kind
from dq.tracking.record.run import Run, write_run
from dq.tracking.record.secrets import hide_in_text
from dq.tracking.wandb_copy.relay_process import Relay

log = logging.getLogger(__name__)
# Rows (by kind) and tables (by ``when``) that are written at the end of an epoch or of the stage.
AT_EPOCH, AT_END = ("val", "proof", "epoch"), ("test", "images", "checkpoint", "end")
# Validation metrics where larger is better; losses and counts have other names.
BEST = ("mAP", "AP", "AR", "recall")


class Tracker:
    """Accept everything and write nothing; for ranks other than the main one.

    No method raises, waits for a server, draws a random number or needs another rank.
    """

    run: Run | None = None
    last_step: int = 0

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Keep one row.

        Args:
            kind: ``train``, ``val``, ``test``, or the name of an event.
            step: Number of optimizer steps done.
            values: Plain numbers and texts by name.
        """

    def table(self, step: int, epoch: int, when: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep one table of all quantizers.

        Args:
            step: Number of steps done.
            epoch: Number of epochs done.
            when: ``calibration``, ``epoch`` or ``end``.
            rows: One dict per quantizer, with the same keys in each.
        """

    def images(self, step: int, files: Iterable[Path]) -> None:
        """Keep pictures that are in the run's folder."""

    def begin_training(self, first: int, steps: int) -> None:
        """Note the length of a training that begins or goes on.

        Args:
            first: Number of steps that are done.
            steps: Number of steps at its end.
        """

    def finish(self, exit_code: int, error: str | None = None) -> None:
        """End the run.

        Args:
            exit_code: The command's exit code.
            error: Why it failed, in one line.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """The point at which a run is resumed.

    Attributes:
        step: Steps that the checkpoint has done.
        inside_epoch: Whether the work at the end of an epoch (validation, proof, a table) is still
            to come.
    """

    step: int
    inside_epoch: bool = False

    def keeps(self, row: Mapping[str, Any]) -> bool:
        """Whether the resumed run will not write this row again."""
        step = int(row.get("step", 0))
        if step != self.step:
            return step < self.step
        if row.get("kind") in AT_END or row.get("when") in AT_END:
            return False
        ends_epoch = row.get("kind") in AT_EPOCH or row.get("when") in AT_EPOCH
        return not (self.inside_epoch and ends_epoch)


class FolderTracker(Tracker):
    """Write ``metrics.jsonl``, ``quantizers.jsonl`` and ``run.json``; the relay copies them to W&B.

    Args:
        folder: Folder of the stage.
        run: Identity of the run; written immediately.
        resumed: For a resumed run; the rows that it will repeat are removed.
        relay: Copies the folder to W&B in a separate process.

    Raises:
        ValueError: The folder is not writable.
    """

    def __init__(
        self, folder: Path, run: Run, *, resumed: Resumed | None = None, relay: Relay | None = None
    ) -> None:
        self.folder, self.run = folder, replace(run, process=this_process())
        self.last_step = 0 if resumed is None else resumed.step
        for name in (METRICS, QUANTIZERS):
            begin_rows(folder / name, None if resumed is None else resumed.keeps)
        for row in rows_of_kind(folder / METRICS, "val"):
            self._note_best(row)
        write_run(folder, self.run)
        self.metrics = RowFile(folder / METRICS)
        self.quantizers: RowFile | None = None
        self.relay = relay
        if relay is not None:
            relay.begin(folder)

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Keep one row; see `Tracker.log`."""
        row = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        self.metrics.write(row)
        self.last_step = max(self.last_step, step)
        if kind == "val" and self._note_best(row):
            self._write_run()
        if self.relay is not None:
            self.relay.listen()

    def table(self, step: int, epoch: int, when: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep one table; see `Tracker.table`."""
        found = list(rows)
        if not found:
            return
        if self.quantizers is None:
            try:
                self.quantizers = RowFile(self.folder / QUANTIZERS)
            except ValueError as error:  # The next table is tried again.
                log.warning("%s", error)
                return
        names = list(found[0])
        self.quantizers.write(
            {
                "step": step,
                "epoch": epoch,
                "when": when,
                "time": round(time.time(), 3),
                "columns": names,
                "rows": [[row.get(name) for name in names] for row in found],
            }
        )

    def images(self, step: int, files: Iterable[Path]) -> None:
        """Record pictures of this folder in the metrics; see `Tracker.images`."""
        names = [str(path.relative_to(self.folder)) for path in files]
        if names:
            self.log("images", step, {"files": names})

    def begin_training(self, first: int, steps: int) -> None:
        """Note the length of a training; see `Tracker.begin_training`."""
        assert self.run is not None
        self.run = replace(self.run, training={"first": first, "steps": steps})
        self._write_run()

    def finish(self, exit_code: int, error: str | None = None) -> None:
        """Close the files and record how the run ended; see `Tracker.finish`."""
        status = {0: "finished", STOPPED_CODE: "stopped"}.get(exit_code, "failed")
        assert self.run is not None
        self.run = replace(
            self.run,
            status=status,
            exit_code=exit_code,
            ended=time.time(),
            error=None if error is None else hide_in_text(error),
        )
        self._write_run()
        self.metrics.close()
        if self.quantizers is not None:
            self.quantizers.close()
        if self.relay is not None:
            self.relay.end(self.folder, exit_code)

    def _note_best(self, row: Mapping[str, Any]) -> bool:
        assert self.run is not None
        best = dict(self.run.best)
        for name, value in row.items():
            if not isinstance(value, float) or not any(word in name for word in BEST):
                continue
            if name not in best or value > best[name]["value"]:
                best[name] = {"value": value, "step": row["step"], "epoch": row.get("epoch")}
        changed = best != self.run.best
        self.run = replace(self.run, best=best)
        return changed

    def _write_run(self) -> None:
        assert self.run is not None
        try:
            write_run(self.folder, self.run)
        except ValueError as error:
            log.warning("%s", error)
