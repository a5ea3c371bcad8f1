"""The table of all families as Markdown: written, and read again where only some are tried anew."""

from __future__ import annotations

import datetime
import importlib.metadata
import re
from collections import Counter
from collections.abc import Callable, Mapping

from launcher.coverage.row import CRASHED, DIFFERS, REFUSED, STEPS, WHOLE, Row

_HEAD = """\
# Coverage of mmdet's configs

One config of each family that mmdet ships goes the whole way through files: every step is a
command of the launcher in a process of its own, which reads what others wrote. Nets are narrow and
shallow, weights random, the data four images of digits in COCO's format with boxes and masks, so
nothing here says how well a detector does. Made by
`python -m launcher coverage --out docs/coverage.md`.

| column | what it says yes to |
|---|---|
| float | two steps of float training, evaluation and checkpoint |
| calibrate | calibration (int8) of that checkpoint |
| qat | QAT from its ranges, stopped by a signal in its first step |
| resume | the same training gone on with `--resume` to its end |
| eval | each of the three checkpoints has, in a fresh process, the metrics that its stage had |
| mmdet | mmdet itself loads each, every key and no other, and finds the same boxes in float; \
`loads` where it cannot detect on this machine |
| export | ONNX of the network, and of each RoI head |
| boxes, nms | ONNX with boxes decoded, and suppressed; `none` where no decoder of ours fits |
| onnxruntime | each exported model has the metric of the checkpoint in torch, to a tenth of a \
point; `ties` where it moves further on these four images though every layer agrees on the same \
input: values beside a tie, or boxes of one score in another order |

**Result**: `whole way` where nothing failed; `refused` by one line, which stands under what, with
exit code 2; `differs` where two numbers should be equal and are not; `crashed` for all else.
**Quantized**: `OK` where all that has weights is; of `partly float` the parts named under what run
in float.
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
        f"{today().isoformat()}, {versions}: {len(rows)} families, {totals};"
        f" {quantized['OK']} quantized whole, {quantized['partly float']} in part.",
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


# Between the line that says why a chain ended and what of the detector runs in float.
_NEXT = " left in float: "


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
