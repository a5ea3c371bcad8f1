"""Find and read experiments on the disk: folders with stages, each with its summary."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dq.tracking.record.file_time import written_at
from dq.tracking.record.liveness import state_of
from dq.tracking.record.rows import METRICS, sample_rows
from dq.tracking.record.run import FILE_NAME as RUN_FILE
from dq.tracking.record.run import Run, read_run
from dq.tracking.record.stage_summary import FILE_NAME as SUMMARY_FILE
from dq.tracking.record.stage_summary import StageSummary, read_summary

# The float detector trained on, beside a quantized training.
CONTROL = "control"
STAGES = ("float", "calibrated", CONTROL, "qat")
# Subfolders of an experiment that are never experiments themselves.
PASSED_OVER = {
    *("logs", "plots", "wandb", "samples", "analyze", "export", "quantize", "show", *STAGES),
    *("eval", "eval_onnxruntime", "eval_openvino", "eval_torch_int"),
}
MAX_DEPTH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """The stages of an experiment and their results.

    Attributes:
        name: Unique among the compared experiments.
        folder: Has one subfolder per stage.
        stages: Summary of each finished stage.
        open_stages: State of each unfinished stage that was started: ``running``, ``stopped``,
            ``failed``, ``with an unreadable summary``, or the result of
            `dq.tracking.record.liveness.state_of` for one that did not record its end.
    """

    name: str
    folder: Path
    stages: dict[str, StageSummary]
    open_stages: dict[str, str]

    def value(self, stage: str) -> float | None:
        """Return a stage's metric, 0 to 1."""
        return self.stages[stage].value if stage in self.stages else None


def find_experiments(folders: Iterable[Path]) -> list[Experiment]:
    """Return the experiments in these folders: the folder itself, a stage's parent, or below it.

    Raises:
        ValueError: A folder does not exist or has no run in it.
    """
    found: dict[Path, Experiment] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; give a work dir, or a folder of them")
        places = list(_experiments_below(folder))
        if not places:
            raise ValueError(
                f"{folder} has no run in it (no {'/'.join(STAGES)} with {SUMMARY_FILE} or"
                f" {RUN_FILE}); give a --work-dir that `launcher run` has filled"
            )
        for place in places:
            found.setdefault(place.resolve(), _read(place))
    return with_shared_float(_named_apart(list(found.values())))


def with_shared_float(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Add the float result to experiments that started from another one's float checkpoint."""
    floats = [e.stages["float"] for e in experiments if "float" in e.stages]
    # Without a checksum nothing says which checkpoint it was.
    by_sha = {summary.sha256: summary for summary in floats if summary.sha256 is not None}
    result = []
    for experiment in experiments:
        stages = dict(experiment.stages)
        for stage in ("calibrated", "qat"):
            parent = stages[stage].parent if stage in stages else None
            if "float" not in stages and parent in by_sha:
                stages = {"float": by_sha[parent], **stages}
        result.append(replace(experiment, stages=stages))
    return result


def last_row(experiment: Experiment, stage: str) -> dict[str, object] | None:
    """Return the last row that a stage has logged."""
    rows = sample_rows(experiment.folder / stage / METRICS, 1, whole_below=0)
    return rows[-1] if rows else None


def _experiments_below(folder: Path, depth: int = 0) -> Iterator[Path]:
    if _is_stage(folder):
        yield folder.parent if folder.name in STAGES else folder
        return
    try:
        entries = sorted(e.name for e in os.scandir(folder) if e.is_dir(follow_symlinks=False))
    except OSError:
        return
    if any(_is_stage(folder / stage) for stage in STAGES if stage in entries):
        yield folder
    if depth < MAX_DEPTH:
        for name in entries:
            if name not in PASSED_OVER and not name.startswith("."):
                yield from _experiments_below(folder / name, depth + 1)


def _is_stage(folder: Path) -> bool:
    return (folder / SUMMARY_FILE).is_file() or (folder / RUN_FILE).is_file()


def _read(folder: Path) -> Experiment:
    stages, unfinished = {}, {}
    for stage in STAGES:
        summary = read_summary(folder / stage)
        if summary is not None:
            stages[stage] = summary
            continue
        run = read_run(folder / stage)
        if (folder / stage / SUMMARY_FILE).exists():
            unfinished[stage] = "with an unreadable summary"
        elif run is not None:
            unfinished[stage] = _status(folder / stage, run)
    return Experiment(name=folder.name, folder=folder, stages=stages, open_stages=unfinished)


def _status(folder: Path, run: Run) -> str:
    if run.status != "running":
        return run.status
    return state_of(run.process, max(written_at(folder / name) for name in (METRICS, RUN_FILE)))


def _named_apart(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Return them with as many trailing parts of their path as needed to make names unique."""
    names = [e.folder.resolve().parts for e in experiments]
    result = []
    for experiment, parts in zip(experiments, names, strict=True):
        length = 1
        while length < len(parts) and sum(p[-length:] == parts[-length:] for p in names) > 1:
            length += 1
        result.append(replace(experiment, name="/".join(parts[-length:])))
    return result
