"""The plots of the comparison's report, each as a PNG in memory."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from dq.tracking.pictures.predictions import MISSED
from dq.tracking.record.rows import (
    METRICS,
    QUANTIZERS,
    Row,
    last_whole_row,
    rows_of_kind,
    sample_rows,
)
from dq.tracking.reports.experiments import Experiment

COLORS = {"float": "#7b8794", "calibrated": "#e08a3c", "control": "#38a169", "qat": "#2b6cb0"}
LABELS = {"float": "float", "calibrated": "{bits} calibrated (PTQ)",
          "control": "float, trained on", "qat": "{bits} QAT"}  # fmt: skip
CURVE_POINTS = 300


def label_of(experiment: Experiment, stage: str) -> str:
    """Return the name of a stage with its integer format, such as ``int8 QAT``."""
    summary = experiment.stages.get(stage)
    bits = None if summary is None else summary.bits
    return LABELS[stage].format(bits=bits or "").strip()


def curves(experiments: Sequence[Experiment]) -> bytes | None:
    """Plot training loss and validation metric over epochs; None if nothing was logged."""
    figure, (left, right) = _axes(2, width=11, height=3.6)
    drawn = 0
    for number, experiment in enumerate(experiments):
        for stage, style in (("float", "--"), ("control", ":"), ("qat", "-")):
            path = experiment.folder / stage / METRICS
            rows = [r for r in sample_rows(path, CURVE_POINTS) if r.get("kind") == "train"]
            label = f"{experiment.name} {stage}"
            color = f"C{number}"
            known = [r for r in rows if r.get("loss") and "epoch" in r]
            if known:
                left.plot([r["epoch"] for r in known], [r["loss"] for r in known], style,
                          color=color, label=label, lw=1.4)  # fmt: skip
                drawn += 1
            metric = experiment.stages[stage].metric if stage in experiment.stages else "mAP"
            val = [r for r in rows_of_kind(path, "val") if isinstance(r.get(metric), float)]
            if val:
                right.plot([r["epoch"] for r in val], [100 * r[metric] for r in val],
                           f"o{style}", color=color, label=label, ms=4, lw=1.4)  # fmt: skip
    left.set(title="Training loss", xlabel="epoch", ylabel="loss", yscale="log")
    right.set(title="Validation while training", xlabel="epoch", ylabel="metric, %")
    for axis in (left, right):
        if axis.lines:
            axis.legend(fontsize=7.5, frameon=False)
    return _png(figure) if drawn else None


def last_table(experiment: Experiment, stage: str) -> list[Row]:
    """Return the last table of quantizers that a stage has written, one dict per quantizer."""
    last = last_whole_row(experiment.folder / stage / QUANTIZERS)
    if last is None:
        return []
    return [dict(zip(last["columns"], values, strict=True)) for values in last["rows"]]


def layer_noise(experiment: Experiment) -> bytes | None:
    """Plot each quantizer's SQNR after calibration and after QAT, in execution order."""
    tables = {stage: last_table(experiment, stage) for stage in ("calibrated", "qat")}
    names = [r["name"] for r in tables["calibrated"] or tables["qat"]]
    if not names:
        return None
    figure, (top, bottom) = _axes(2, width=11, height=6.6, rows=True)
    for axis, kind, field in (
        (top, "activation", "network_sqnr"),
        (bottom, "weight", "sqnr"),
    ):
        kept = [r["name"] for t in (tables["calibrated"] or tables["qat"],) for r in t
                if r["kind"] == kind]  # fmt: skip
        for stage, rows in tables.items():
            by_name = {r["name"]: r.get(field) for r in rows}
            points = [(i, by_name[n]) for i, n in enumerate(kept) if by_name.get(n) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", ms=3.5, lw=1.2, color=COLORS[stage],
                          label=label_of(experiment, stage))  # fmt: skip
        axis.set_xticks(range(len(kept)), [_short(n) for n in kept], rotation=90, fontsize=6)
        axis.set(ylabel="SQNR, dB")
        axis.margins(x=0.01)
        axis.legend(fontsize=8, frameon=False)
    top.set_title("Activations: quantized network against float (higher is better)")
    bottom.set_title("Weights: rounding of each layer alone")
    return _png(figure)


def ranges(experiment: Experiment, stage: str) -> bytes | None:
    """Plot the representable range and the observed values of each activation."""
    rows = [r for r in last_table(experiment, stage) if r["kind"] == "activation"]
    if not rows:
        return None
    figure, (axis,) = _axes(1, width=11, height=4.2)
    for place, row in enumerate(rows):
        low, high = row["seen_low"], row["seen_high"]
        if low is None or high is None:
            continue
        axis.plot([place, place], [low, high], color="#c9d3df", lw=5, solid_capstyle="butt")
        axis.plot([place, place], [row["low"], row["high"]], color=COLORS[stage], lw=1.6)
        if row["clipped"] > 0.001:
            axis.annotate(f"{100 * row['clipped']:.1f} %", (place, row["high"]), fontsize=6,
                          rotation=90, ha="center", va="bottom", color="#b83280")  # fmt: skip
    axis.set_xticks(range(len(rows)), [_short(r["name"]) for r in rows], rotation=90, fontsize=6)
    axis.set_yscale("symlog", linthresh=1.0)
    axis.margins(x=0.01, y=0.12)
    label = label_of(experiment, stage)
    axis.set(ylabel="value", title=f"{label}: grey seen, colour representable, pink clipped")
    return _png(figure)


def class_bars(experiment: Experiment) -> bytes | None:
    """Plot the precision of each class by stage; the classes that lose most come first."""
    found = {s: e.classes for s, e in experiment.stages.items() if e.classes}
    if not found:
        return None
    last = list(found)[-1]
    reference: Mapping[str, float] = found.get("float", found[last])
    names = sorted(found[last], key=lambda n: found[last][n] - reference.get(n, 0.0))[:30]
    figure, (axis,) = _axes(1, width=11, height=3.4)
    width = 0.8 / len(found)
    for number, (stage, values) in enumerate(found.items()):
        axis.bar([i + number * width for i in range(len(names))],
                 [100 * values.get(n, 0.0) for n in names], width,
                 color=COLORS[stage], label=label_of(experiment, stage))  # fmt: skip
    places = [i + width * (len(found) - 1) / 2 for i in range(len(names))]
    axis.set_xticks(places, names, rotation=0 if len(names) < 12 else 60, fontsize=8)
    axis.set(ylabel="AP at IoU 0.5, %", title="Precision of each class, largest loss first")
    axis.legend(fontsize=8, frameon=False)
    return _png(figure)


def confusion(table: Mapping[str, Mapping[str, int]], title: str) -> bytes | None:
    """Plot the classes that the run predicts for objects that the float detector had right."""
    names = [n for n, row in table.items() if sum(row.values())]
    if not names:
        return None
    heads = [*names, MISSED]
    share = [[table[n].get(h, 0) / sum(table[n].values()) for h in heads] for n in names]
    side = min(9.0, 2.5 + 0.45 * len(heads))
    figure, (axis,) = _axes(1, width=side + 1.5, height=side)
    axis.grid(visible=False)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axis.set_xticks(range(len(heads)), heads, rotation=60, fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    for y, name in enumerate(names):
        for x, head in enumerate(heads):
            count = table[name].get(head, 0)
            if count:
                color = "white" if share[y][x] > 0.5 else "#1d2433"
                axis.text(x, y, str(count), ha="center", va="center", fontsize=7, color=color)
    axis.set(title=title, xlabel="quantized says", ylabel="truth, found by float")
    return _png(figure)


def _axes(number: int, *, width: float, height: float, rows: bool = False) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    grid = (number, 1) if rows else (1, number)
    axes = figure.subplots(*grid, squeeze=False).ravel()
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(10)
    return figure, axes


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"…{name[-27:]}"
