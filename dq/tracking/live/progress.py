"""How far a stage is: step, time to go, losses, metrics, slow ranks, from the rows it writes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dq.tracking.record.rows import METRICS, Row, RowFollower
from dq.tracking.record.run import Run

# The values of a row of training that are shown, by their names in the row.
SHOWN = (
    *("loss", "lr", "grad_norm", "images_per_s", "loading_share", "memory_mib", "gpu_memory_mib"),
    *("phase", "skipped_steps", "bad_images"),
)
# Names of metrics by preference. With several data sets a number comes first: ``0_mAP``.
_METRICS = ("mAP", "bbox_mAP", "bbox_AP", "AP50")
_NO_METRICS = ("epoch", "time", "step_s", "loading_s", "lr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """One evaluation during a training.

    Attributes:
        epoch: Number of epochs done.
        step: Number of steps done.
        metric: Name of the metric.
        value: The metric, 0 to 1.
    """

    epoch: float
    step: int
    metric: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowRank:
    """A rank that was reported as slow.

    Attributes:
        rank: The rank.
        phase: What it was slow at.
        seconds: Time of the last report.
        others: Median of the other ranks' times.
        step: Step of the last report.
        reports: Number of reports of this rank and phase.
    """

    rank: int
    phase: str
    seconds: float
    others: float
    step: int
    reports: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a stage is.

    Attributes:
        step: Steps done.
        steps: Steps of the whole training; None if unknown, as in other stages.
        epoch: Epochs done, with a fraction.
        to_go_s: Estimated seconds to the end of the training; None if unknown or not running.
        last: Values of the last row of training, by name, see `SHOWN`.
        losses: The loss over the training, oldest first, at most `CURVE` values.
        validations: Evaluations during the training, oldest first.
        slow: Ranks that were slow.
        events: Other events, in words, oldest first.
        proof: Step at which the ranges of all ranks were last found equal.
        quiet_s: Seconds since the last row; None if not running.
    """

    step: int = 0
    steps: int | None = None
    epoch: float | None = None
    to_go_s: float | None = None
    last: Mapping[str, Any] = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    validations: tuple[Validation, ...] = ()
    slow: tuple[SlowRank, ...] = ()
    events: tuple[str, ...] = ()
    proof: int | None = None
    quiet_s: float | None = None


CURVE = 40


class StageFollower:
    """Follow the rows of a stage.

    Args:
        folder: The stage's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._rows = RowFollower(folder / METRICS)
        self._forget()

    def _forget(self) -> None:
        self._last: Row = {}
        # Step, time and seconds of a step of each row of training.
        self._times: list[tuple[int, float, float | None]] = []
        self._losses: list[float] = []
        self._validations: list[Validation] = []
        self._slow: dict[tuple[int, str], Row] = {}
        self._reports: Counter[tuple[int, str]] = Counter()
        self._events: list[str] = []
        self._proof: int | None = None
        self._newest: Row = {}
        self._epoch: float | None = None

    def update(self) -> None:
        """Read what was written since the last call."""
        is_other, rows = self._rows.follow()
        if is_other:
            self._forget()
        for row in rows:
            if isinstance(row.get("step"), int):
                self._take(row)

    def _take(self, row: Row) -> None:
        kind = row.get("kind")
        self._newest = row
        if (epoch := _number(row.get("epoch"))) is not None:
            self._epoch = epoch
        if kind == "train":
            self._last = row
            if (written := _number(row.get("time"))) is not None:
                self._times.append((row["step"], written, _number(row.get("step_s"))))
            if isinstance(row.get("loss"), int | float):
                self._losses.append(float(row["loss"]))
        elif kind == "val":
            name = metric_in(row)
            if name is not None:
                epoch = _number(row.get("epoch")) or 0.0
                found = Validation(epoch=epoch, step=row["step"], metric=name, value=row[name])
                self._validations.append(found)
        elif kind == "proof":
            self._proof = row["step"]
        elif kind == "straggler" and isinstance(row.get("rank"), int):
            key = (row["rank"], str(row.get("phase")))
            self._slow[key] = row
            self._reports[key] += 1
        elif kind == "runaway":
            said = row.get("line")
            words = str(said) if said else f"step {row['step']}: {_words(row)}"
            self._events.append(" ".join(words.split()))

    def progress(self, run: Run | None, now: float | None) -> Progress | None:
        """Return the progress; None before the first row.

        Args:
            run: The stage's run, for its length.
            now: Seconds since 1970; None if the stage does not run.
        """
        if not self._newest:
            return None
        last = self._last
        step = int(self._newest["step"])
        steps = _length(run, last)
        written = _number(self._newest.get("time"))
        return Progress(
            step=step,
            steps=steps,
            epoch=self._epoch,
            to_go_s=None if now is None or steps is None else self._to_go(run, steps, now),
            last={name: last[name] for name in SHOWN if last.get(name) is not None},
            losses=tuple(_thinned(self._losses, CURVE)),
            validations=tuple(self._validations),
            slow=tuple(self._slow_rank(key) for key in self._slow),
            events=tuple(self._events),
            proof=self._proof,
            quiet_s=None if now is None or written is None else max(0.0, now - written),
        )

    def _slow_rank(self, key: tuple[int, str]) -> SlowRank:
        row = self._slow[key]
        return SlowRank(
            rank=key[0],
            phase=key[1],
            seconds=_number(row.get("seconds")) or 0.0,
            others=_number(row.get("others")) or 0.0,
            step=row["step"],
            reports=self._reports[key],
        )

    def _to_go(self, run: Run | None, steps: int, now: float) -> float | None:
        """Return the seconds to the end, by the mean time of a step, with all between steps.

        Rows from before a resumption do not count: the pause is not a step's time.
        """
        first = 0 if run is None else int(_number(run.training.get("first")) or 0)
        times = [each for each in self._times if each[0] > first]
        if not times:
            return None
        (begin, began, _), (end, ended, step_s) = times[0], times[-1]
        pace = (ended - began) / (end - begin) if end > begin else step_s
        if pace is None:
            return None
        return max(0.0, pace * max(0, steps - end) - max(0.0, now - ended))


def metric_in(row: Mapping[str, Any]) -> str | None:
    """Return the name of the metric to show of an evaluation; None if it has none."""
    numbers = [n for n, v in row.items() if isinstance(v, float)]
    for wanted in _METRICS:
        for name in (wanted, f"0_{wanted}"):
            if name in numbers:
                return name
    # Losses of the validation images are in rows of their own.
    others = (name for name in numbers if name not in _NO_METRICS and "loss" not in name)
    return next((name for name in others), None)


def _length(run: Run | None, last: Mapping[str, Any]) -> int | None:
    """Return the steps of a training, from its record, else from the config of a float training."""
    if run is None:
        return None
    steps = run.training.get("steps")
    if isinstance(steps, int):
        return steps
    config, epoch = run.config, _number(last.get("epoch"))
    if run.stage != "float":
        return None
    if isinstance(iterations := config.get("runner.max_iters"), int):
        return iterations
    epochs = config.get("runner.max_epochs")
    return round(last["step"] / epoch * epochs) if isinstance(epochs, int) and epoch else None


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None


def _thinned(values: list[float], most: int) -> list[float]:
    """Return at most ``most`` means of neighbours."""
    if len(values) <= most:
        return values
    ends = [round(len(values) * n / most) for n in range(most + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(ends)]


def _words(row: Row) -> str:
    rest = {k: v for k, v in row.items() if k not in ("kind", "step", "time")}
    shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rest.items())
    return f"{row['kind']}: {', '.join(shown)}"
