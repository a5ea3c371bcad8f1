"""Write the table of all families as Markdown; read it again if only some families run again."""

from __future__ import annotations

import datetime
import importlib.metadata
import re
from collections import Counter
from collections.abc import Callable, Mapping

from dq.counted import counted
from launcher.coverage.row import CRASHED, DIFFERS, REFUSED, STEPS, WHOLE, Row

_HEAD = """\
# Coverage of mmdet's configs

One config of each family that mmdet ships goes through all steps: every step is a launcher command
in a separate process that reads the files of earlier steps. Nets are narrow and shallow, weights
are random, and the data are four images of digits in COCO's format with boxes and masks, so the
table says nothing about accuracy. Made by `python -m launcher coverage --out docs/coverage.md`.

| column | meaning of yes |
|---|---|
| float | two steps of float training, evaluation and checkpoint |
| calibrate | calibration (int8) of that checkpoint |
| qat | QAT from its ranges, stopped by a signal in its first step |
| resume | the same training resumed with `--resume` to its end |
| eval | each of the three checkpoints has, in a new process, the metrics that its stage had |
| mmdet | mmdet itself loads each checkpoint, with exactly its keys, and finds the same boxes in \
float; `loads` if it cannot detect on this machine |
| export | ONNX of the network, and of each RoI head |
| boxes, nms | ONNX with decoded boxes, and with NMS; `none` if no decoder of ours fits |
| onnxruntime | each exported model has the metric of the checkpoint in torch, to a tenth of a \
point; `ties` if the metric differs more on these four images although every layer agrees on the \
same input: values next to a rounding tie, or boxes of equal score in another order |

**Result**: `whole way` if nothing failed; `refused` with one line, which is in the last column, and
exit code 2; `differs` if two numbers should be equal and are not; `crashed` for anything else.
**Quantized**: `OK` if everything with weights is quantized; with `partly float` the parts in the
last column stay in float.
"""
_COLUMNS = ("family", "config", "result", "quantized", "quantizers", *STEPS, "what")


def table(
    rows: Mapping[str, Row], *, today: Callable[[], datetime.date] = datetime.date.today
) -> str:
    """Return the table of these families, with date and versions."""
    counts = Counter(row.result for row in rows.values())
    totals = ", ".join(f"{counts[kind]} {kind}" for kind in (WHOLE, REFUSED, DIFFERS, CRASHED))
    quantized = Counter(row.quantized for row in rows.values())
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("mmdet", "mmcv-full", "torch", "onnxruntime")
    )
    lines = [
        f"{today().isoformat()}, {versions}: {counted(len(rows), 'famil[y|ies]')},"
        f" {totals}; {quantized['OK']} quantized whole, {quantized['partly float']} in part.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---|---|---|---|---:|" + "---|" * (len(STEPS) + 1),
    ]
    for name, row in sorted(rows.items()):
        steps = [row.steps.get(step, "") for step in STEPS]
        cells = [name, row.config, row.result, row.quantized, str(row.quantizers), *steps]
        said = f"{row.what}{_NEXT}{row.left_float}" if row.left_float else row.what
        lines.append(f"| {' | '.join([*cells, _escaped(said)])} |")
    return f"{_HEAD}\n" + "\n".join(lines) + "\n"


def rows_of(text: str) -> dict[str, Row]:
    """Return the rows of a table that `table` wrote."""
    rows = {}
    for line in re.findall(r"^\| (.*) \|$", text, re.M):
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\) \| ", f"{line} ")]
        if len(cells) != len(_COLUMNS) or cells[0] in ("family", "---"):
            continue
        found = dict(zip(_COLUMNS, cells, strict=True))
        what, _, left_float = found["what"].partition(_NEXT.strip())
        rows[found["family"]] = Row(
            config=found["config"],
            steps={step: found[step] for step in STEPS if found[step]},
            quantizers=int(found["quantizers"]),
            left_float=left_float.strip(),
            what=what.strip(),
        )
    return rows


# Separates the reason why a chain ended from the parts of the detector that run in float.
_NEXT = " left in float: "


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
