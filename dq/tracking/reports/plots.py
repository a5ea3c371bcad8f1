"""Plots of a run: loss and learning rate over steps, metric over epochs, the final comparison."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dq.tracking.record.stage_summary import StageSummary
from dq.tracking.reports.figure_file import write_figure

STAGES = ("float", "qat")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of mmcv's ``*.log.json`` files in a stage's folder, oldest file first."""
    rows = []
    for path in sorted(folder.glob("*.log.json")):
        try:
            lines = path.read_text().splitlines()
        except FileNotFoundError:
            continue  # Removed at this moment.
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # A line cut short by a kill.
            if "mode" in row:
                rows.append(row)
    return rows


def write_plots(
    folder: Path, experiment: Path, summaries: Mapping[str, StageSummary]
) -> list[Path]:
    """Plot the logs of the experiment's stages and return the files.

    Args:
        folder: Folder for the PNG files.
        experiment: Folder with the stages' folders.
        summaries: Summaries by stage.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    logs = {stage: read_log(experiment / stage) for stage in STAGES}
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(15, 4), layout="constrained")
    for stage, rows in logs.items():
        train = [r for r in rows if r["mode"] == "train" and "loss" in r]
        _line(left, _positions(train, rows), [r["loss"] for r in train], stage)
        metric = summaries[stage].metric if stage in summaries else "mAP"
        # Metrics of several test sets are numbered; validation may use only one set, or several.
        called = (metric, metric.removeprefix("0_"), f"0_{metric}")
        known = [(r, next((n for n in called if n in r), None)) for r in rows if r["mode"] == "val"]
        val = [(r["epoch"], 100 * r[name]) for r, name in known if name is not None]
        _line(middle, [epoch for epoch, _ in val], [value for _, value in val], stage, "o-")
    left.set(xlabel="epoch", ylabel="training loss", yscale="log", title="Loss")
    middle.set(xlabel="epoch", ylabel="mAP, %", title="Validation while training")
    names = list(summaries)
    values = [100 * summaries[name].value for name in names]
    bars = right.bar(names, values, color=["#777", "#d8894a", "#3b78b5"][: len(names)])
    right.bar_label(bars, fmt="%.1f")
    right.set(ylabel=f"{summaries[names[0]].metric}, %", title="Final evaluation")
    for axis in (left, middle):
        if axis.lines:
            axis.legend()
        axis.grid(alpha=0.3)
    path = folder / "training.png"
    write_figure(path, figure, dpi=110)
    return [path]


def _positions(
    train: Iterable[Mapping[str, Any]], rows: Iterable[Mapping[str, Any]]
) -> list[float]:
    """Return the positions of training rows in epochs."""
    last = max((r["iter"] for r in rows if r["mode"] == "train"), default=1)
    return [float(row["epoch"]) - 1 + float(row["iter"]) / max(1, last) for row in train]


def _line(axis: Any, x: Sequence[float], y: Sequence[float], label: str, style: str = "-") -> None:
    if x:
        axis.plot(x, y, style, label=label)
