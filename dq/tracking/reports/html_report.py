"""The comparison as one self-contained HTML file: tables, plots, pictures."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dq.counted import counted
from dq.tracking.pictures.predictions import lost_objects, read_predictions
from dq.tracking.reports import report_plots
from dq.tracking.reports.comparison import HEADS, Line, cells, groups_of
from dq.tracking.reports.experiments import Experiment

MAX_PICTURES = 6
STYLE = """
:root{color-scheme:light}
body{font:15px/1.5 system-ui,"Segoe UI","DejaVu Sans",sans-serif;color:#1d2433;background:#f4f6f9;
margin:0}
main{max-width:1120px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:0 0 12px}
h3{font-size:15px;margin:18px 0 6px}
p.note{color:#5a6678;margin:0 0 18px}
section{background:#fff;border:1px solid #e3e8ef;border-radius:10px;padding:18px 22px;margin:18px 0;
overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th{text-align:left;color:#5a6678;font-weight:600;border-bottom:2px solid #e3e8ef;padding:6px 9px}
td{border-bottom:1px solid #eef1f5;padding:6px 9px}
td.n,th.n{text-align:right}tr.best td{background:#eef6ee;font-weight:600}
td.c{font-family:ui-monospace,"DejaVu Sans Mono",monospace;font-size:12px;word-break:break-word}
img{max-width:100%;display:block;margin:8px 0}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:14px}
.bad{color:#b42318}.good{color:#1a7f37}
"""
TEXT_COLUMNS = {"name", "bits", "state"}


def html_report(
    lines: Sequence[Line],
    shown: Sequence[Experiment],
    changed: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return the report.

    Args:
        lines: Rows of the table, the best first.
        shown: The experiments to plot.
        changed: From `dq.tracking.reports.comparison.differences`.
    """
    groups = groups_of(lines)
    tables = "".join(
        (f"<h3>{escape(title)}</h3>" if len(groups) > 1 else "") + _verdict(group) + _table(group)
        for title, group in groups.items()
    )
    parts = [_section("results", "Results", tables)]
    parts.append(_section("curves", "Training", _picture(report_plots.curves(shown), "curves")))
    if changed:
        parts.append(_section("config", "What differs in the configs", _changed(changed)))
    for experiment in shown:
        parts.append(_of_experiment(experiment))
    when = time.strftime("%Y-%m-%d %H:%M")
    title = f"Comparison of {counted(len(lines), 'experiment[s]')}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title><style>{STYLE}</style></head>"
        f"<body><main><h1>{title}</h1>"
        f'<p class="note">written {when} by <code>launcher compare</code>; numbers in percent,'
        f" drop is the loss against float</p>{''.join(p for p in parts if p)}"
        "</main></body></html>\n"
    )


def _verdict(lines: Sequence[Line]) -> str:
    finished = [
        line for line in lines if line.acc_qat is not None or line.acc_calibrated is not None
    ]
    if not finished:
        return ""
    best = finished[0]
    value = best.acc_qat if best.acc_qat is not None else best.acc_calibrated
    drop = best.drop_qat if best.acc_qat is not None else best.drop_calibrated
    against = "" if drop is None else f", {drop:+.2f} lost against float"
    return (
        f"<p><b>{escape(best.name)}</b> is best: {escape(best.metric)} {value:.2f}"
        f" at {escape(best.bits or '?')}{against}.</p>"
    )


def _table(lines: Sequence[Line]) -> str:
    names = list(HEADS)
    head = "".join(
        f'<th class="{"" if name in TEXT_COLUMNS else "n"}">{escape(text)}</th>'
        for name, text in HEADS.items()
    )
    body = []
    for number, line in enumerate(lines):
        row = ""
        for name, text in zip(names, cells(line), strict=True):
            kind = "" if name in TEXT_COLUMNS else "n"
            if name.startswith("drop_") and text:
                kind += " bad" if getattr(line, name) > 0.5 else " good"
            row += f'<td class="{kind}">{escape(text)}</td>'
        body.append(f'<tr class="{"best" if number == 0 else ""}">{row}</tr>')
    rows = "".join(body)
    return f'<table class="results"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _changed(changed: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for values in changed.values() for name in values))
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = "".join(
        f'<tr><td class="c">{escape(key)}</td>'
        + "".join(f'<td class="c">{escape(str(values.get(n, "—"))[:300])}</td>' for n in names)
        + "</tr>"
        for key, values in changed.items()
    )
    return (
        f'<table id="differences"><thead><tr><th>setting</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _of_experiment(experiment: Experiment) -> str:
    stage = "qat" if "qat" in experiment.stages else "calibrated"
    parts = [
        ("Noise of each layer", report_plots.layer_noise(experiment), "sqnr"),
        ("Ranges", report_plots.ranges(experiment, stage), "ranges"),
        ("Classes", report_plots.class_bars(experiment), "classes"),
    ]
    predictions = read_predictions(experiment.folder / stage)
    if predictions is not None:
        plot = report_plots.confusion(lost_objects(predictions), "Objects that float had right")
        parts.append(("Lost by quantization", plot, "confusion"))
    body = "".join(
        f"<h3>{escape(title)}</h3>{_picture(image, kind)}" for title, image, kind in parts if image
    )
    samples = sorted((experiment.folder / stage / "samples").glob("*.jpg"))[:MAX_PICTURES]
    if samples:
        body += (
            "<h3>Images where float and quantized differ most (missed objects dashed white)</h3>"
            f'<div class="grid">{"".join(_file(path) for path in samples)}</div>'
        )
    return _section(f"experiment-{experiment.name}", experiment.name, body)


def _section(name: str, title: str, body: str) -> str:
    if not body:
        return ""
    return f'<section id="{escape(name, quote=True)}"><h2>{escape(title)}</h2>{body}</section>'


def _picture(image: bytes | None, kind: str) -> str:
    if image is None:
        return ""
    data = base64.b64encode(image).decode()
    return f'<img class="plot {kind}" alt="{kind}" src="data:image/png;base64,{data}">'


def _file(path: Path) -> str:
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except FileNotFoundError:
        return ""  # Removed at this moment.
    name = escape(path.stem, quote=True)
    return f'<img class="sample" alt="{name}" src="data:image/jpeg;base64,{data}">'
