"""Experiments as rows of one table, and the differences between their configs."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dq.tracking.record.json_file import json_text
from dq.tracking.record.latency import read_times_as_fast
from dq.tracking.record.run import read_run
from dq.tracking.record.stage_summary import StageSummary
from dq.tracking.reports.experiments import CONTROL, STAGES, Experiment
from dq.tracking.reports.table import aligned

HEADS = {
    "name": "experiment",
    "acc_float": "Acc Float",
    "acc_calibrated": "Acc 8bit Calib",
    "acc_qat": "Acc 8bit QAT",
    "acc_control": "Acc float on",
    "drop_calibrated": "drop Calib",
    "drop_qat": "drop QAT",
    "bits": "bits",
    "model_bytes": "model MB",
    "images_per_s": "images/s",
    "times_as_fast": "x float",
    "rank_hours": "rank hours",
    "state": "state",
}
MAX_DIFFERENCES = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The row of one experiment in the table.

    Attributes:
        name: Name of the experiment.
        metric: The metric that is compared.
        data: Start of the digest of the annotations it was evaluated on; None if unknown.
        acc_float: In percent, like all ``acc_`` values; None if there is no such stage.
        acc_calibrated: After calibration.
        acc_qat: After quantization-aware training.
        acc_control: The control of QAT: the float detector, trained on by the same steps.
        drop_calibrated: Loss against float in points; negative for a gain.
        drop_qat: Likewise.
        bits: Integer format of the last stage.
        model_bytes: Model size of the last stage.
        images_per_s: Speed of the last stage's evaluation.
        times_as_fast: Speed of the exported model relative to the same model in float.
        rank_hours: Cost: hours of all stages times their ranks.
        state: ``finished``, or the state of the unfinished stage.
    """

    name: str
    metric: str
    data: str | None
    acc_float: float | None
    acc_calibrated: float | None
    acc_qat: float | None
    acc_control: float | None
    drop_calibrated: float | None
    drop_qat: float | None
    bits: str | None
    model_bytes: int | None
    images_per_s: float | None
    times_as_fast: float | None
    rank_hours: float
    state: str


def lines_of(experiments: Sequence[Experiment]) -> list[Line]:
    """Return a row per experiment, grouped by metric and data set, the best first.

    The largest group comes first, experiments without a result last.
    """
    found = [_line(experiment) for experiment in experiments]
    sizes = Counter((line.metric, line.data) for line in found)

    def best(line: Line) -> float:
        values = (line.acc_qat, line.acc_calibrated, line.acc_float)
        # A NaN compares with nothing, so it would leave all rows in disorder.
        return next((v for v in values if v is not None and math.isfinite(v)), -1.0)

    def place(line: Line) -> tuple[Any, ...]:
        group = (line.metric, line.data or "")
        return (not line.metric, -sizes[line.metric, line.data], *group, -best(line))

    return sorted(found, key=place)


def groups_of(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Group the rows that may be ranked against each other, by metric and data set.

    Args:
        lines: From `lines_of`.
    """
    found: dict[str, list[Line]] = {}
    for line in lines:
        title = line.metric or "no result yet"
        if line.metric:
            title += f" on data set {line.data}" if line.data else " on an unknown data set"
        found.setdefault(title, []).append(line)
    return found


def _line(experiment: Experiment) -> Line:
    own = list(experiment.stages.values())
    results = [s for s in own if s.stage != CONTROL] or own
    last = results[-1] if results else None
    data = {stage: _annotations(experiment, stage) for stage in experiment.stages}
    apart = {} if last is None else _measured_otherwise(own, last, data)
    values = {
        name: None if value is None or name in apart else 100 * value
        for name, value in ((stage, experiment.value(stage)) for stage in STAGES)
    }
    reference = values["float"]

    def drop(stage: str) -> float | None:
        value = values[stage]
        return None if value is None or reference is None else round(reference - value, 4)

    unfinished = [f"{stage} {state}" for stage, state in experiment.open_stages.items()]
    unfinished += [f"{stage} measured by {how}" for stage, how in apart.items()]
    return Line(
        name=experiment.name,
        metric="" if last is None else last.metric,
        data=next((digest[:8] for digest in reversed(data.values()) if digest), None),
        acc_float=reference,
        acc_calibrated=values["calibrated"],
        acc_qat=values["qat"],
        acc_control=values[CONTROL],
        drop_calibrated=drop("calibrated"),
        drop_qat=drop("qat"),
        bits=None if last is None else last.bits,
        model_bytes=None if last is None else last.model_bytes,
        images_per_s=None if last is None else last.images_per_s,
        times_as_fast=read_times_as_fast(experiment.folder),
        rank_hours=sum(s.seconds * s.world_size for s in own) / 3600,
        state=", ".join(unfinished) or "finished",
    )


def _measured_otherwise(
    stages: Sequence[StageSummary], last: StageSummary, data: Mapping[str, str | None]
) -> dict[str, str]:
    """Return the stages whose results cannot be compared with the last one's, and why.

    Args:
        stages: All finished stages.
        last: The one with the row's metric.
        data: Digest of the annotations of each, if it is known.
    """
    found = {}
    for stage in stages:
        own, wanted = data.get(stage.stage), data.get(last.stage)
        if stage.metric != last.metric:
            found[stage.stage] = stage.metric
        elif own and wanted and own != wanted:
            found[stage.stage] = "other annotations"
    return found


def _annotations(experiment: Experiment, stage: str) -> str | None:
    """Return the digest of the annotations that a stage was evaluated on, if it is known."""
    run = read_run(experiment.folder / stage)
    digest = None if run is None else run.source.get("test_sha256")
    return digest if isinstance(digest, str) else None


def cells(line: Line) -> list[str]:
    """Return a row's texts in the order of `HEADS`."""
    found = []
    for name in HEADS:
        value = getattr(line, name)
        if value is None:
            found.append("")
        elif name.startswith("acc_"):
            found.append(f"{value:.2f}")
        elif name.startswith("drop_"):
            found.append(f"{value:+.2f}")
        elif name == "model_bytes":
            found.append(f"{value / 1e6:.2f}")
        elif name == "images_per_s":
            found.append(f"{value:.1f}")
        elif name == "times_as_fast":
            found.append(f"{value:.2f}")
        elif name == "rank_hours":
            found.append(f"{value:.3f}" if value < 10 else f"{value:.1f}")
        else:
            found.append(str(value))
    return found


def markdown(lines: Sequence[Line]) -> str:
    """Return the table in Markdown; one table for each group that is ranked together."""
    groups = groups_of(lines)
    if len(groups) == 1:
        return _markdown(lines)
    return "\n".join(f"**{title}**\n\n{_markdown(group)}" for title, group in groups.items())


def _markdown(lines: Sequence[Line]) -> str:
    rows = [list(HEADS.values()), *(cells(line) for line in lines)]
    return aligned(rows) + "\n"


def comma_separated(lines: Sequence[Line]) -> str:
    """Return the table as CSV, with all digits of the numbers."""
    text = io.StringIO()
    names = list(Line.__dataclass_fields__)
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(line) for line in lines)
    return text.getvalue()


def as_json(lines: Sequence[Line], differences: Mapping[str, Mapping[str, Any]]) -> str:
    """Return table and differences as JSON."""
    content = {"experiments": [asdict(line) for line in lines], "differences": differences}
    return json_text(content, indent=1)


def differences(experiments: Sequence[Experiment]) -> dict[str, dict[str, Any]]:
    """Return the config's values that differ between the experiments, by dotted name.

    Args:
        experiments: Two or more. The last stage that was started counts; an experiment without a
            readable run is left out.

    Returns:
        For each name the value in each experiment that has one; the first `MAX_DIFFERENCES` names,
        in the order of the configs.
    """
    values: dict[str, dict[str, Any]] = {}
    known = 0
    for experiment in experiments:
        stage = [s for s in STAGES
                 if s in experiment.stages or s in experiment.open_stages]  # fmt: skip
        run = read_run(experiment.folder / stage[-1]) if stage else None
        if run is None:
            continue
        known += 1
        source = {f"source.{k}": v for k, v in run.source.items() if k not in ("command", "host")}
        for name, value in {**run.config, **source}.items():
            values.setdefault(name, {})[experiment.name] = value
    found = {}
    for name, by_name in values.items():
        texts = Counter(json_text(v) for v in by_name.values())
        if len(texts) > 1 or len(by_name) < known:
            found[name] = by_name
    return dict(list(found.items())[:MAX_DIFFERENCES])
