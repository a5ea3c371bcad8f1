"""Quantized training of YOLOX-Nano, whose published checkpoint has no batch norms left: one table.

    python -m benchmarks.yolox_nano_qat --annotations train128.json --images JPEGImages \
        --checkpoint yolox_nano_coco.pth [--splits 0 1 2] [--trainings SGD AdamW] [--epochs 6] \
        [--cfg-options KEY=VALUE ...]

Each split makes two rows: one half of the images calibrates and trains, with flips only, and the
other is measured. Split 0 takes every second image in the order of their ids, the others shuffle
them. Each row is a run of `launcher run --control --no-validate`, so the result is that of the last
step, and the control is the float detector trained further by the same steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.yolox_nano_ptq import CONFIG, split
from dq.tracking.record.matches import read_matches
from dq.tracking.reports.bootstrap import difference

# The float training that the recipe's numbers follow from.
TRAININGS = {
    "SGD": "optimizer = dict(lr=0.01)",
    "AdamW": "optimizer = dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-2)\n"
    "auto_scale_lr = dict(base_batch_size=8)",
}
HALVES = ("first", "second")
# Stage: its column.
STAGES = {"calibrated": "int8 calibrated", "qat": "int8 QAT", "control": "float, trained on"}
EPOCHS_OF_FLOAT = 300
TEXT = """
_base_ = [{base!r}]
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", img_scale=(416, 416), keep_ratio=True),
    dict(type="RandomFlip", flip_ratio=0.5),
    dict(type="Pad", pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0))),
    dict(type="DefaultFormatBundle"),
    dict(type="Collect", keys=["img", "gt_bboxes", "gt_labels"]),
]
data = dict(
    workers_per_gpu=0,
    train=dict(ann_file={train!r}, img_prefix={images!r}, pipeline=train_pipeline),
    val=dict(ann_file={test!r}, img_prefix={images!r}),
    test=dict(ann_file={test!r}, img_prefix={images!r}))
model = dict(random_size_range=(13, 13))
quant = dict(_delete_=True, recipe="qat-int8", passes={passes!r},
             schedule=dict(calibration_batches=8, calibration_batch_size=8))
{float_training}
"""


def config_text(arguments: argparse.Namespace, training: str, halves: Sequence[Path]) -> str:
    """Return the config of a row.

    Args:
        arguments: Of the command line.
        training: Key of `TRAININGS`.
        halves: The annotations to train with and to measure with.
    """
    return TEXT.format(
        base=str(CONFIG.resolve()),
        train=str(halves[0].resolve()),
        test=str(halves[1].resolve()),
        images=f"{arguments.images.resolve()}/",
        passes=arguments.epochs / EPOCHS_OF_FLOAT,
        float_training=TRAININGS[training],
    )


def run(arguments: argparse.Namespace, training: str, number: int, half: str) -> dict[str, Any]:
    """Run a row, unless it is finished, and return its cells.

    Args:
        arguments: Of the command line.
        training: Key of `TRAININGS`.
        number: Of the split.
        half: The half to train on, of `HALVES`.

    Returns:
        The metric, 0 to 1, by the keys of `STAGES`, and the differences of ``qat`` to the two
        others as text.
    """
    splits: Path = arguments.work_dir / f"split-{number}"
    halves = split(arguments.annotations, splits, number)
    folder = splits / f"{training}-{half}"
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.py"
    ordered = halves if half == HALVES[0] else halves[::-1]
    config.write_text(config_text(arguments, training, ordered))
    line = [sys.executable, "-m", "launcher", "run", str(config), "--control", "--no-validate"]
    line += ["--checkpoint", str(arguments.checkpoint), "--work-dir", str(folder)]
    line += ["--threads", str(arguments.threads), "--wandb", "disabled"]
    line += ["--cfg-options", *arguments.cfg_options] if arguments.cfg_options else []
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = {
        stage: json.loads((folder / stage / "summary.json").read_text())["value"]
        for stage in STAGES
    }
    matches = {stage: read_matches(folder / stage) for stage in STAGES}
    for other in ("calibrated", "control"):
        first, second = matches[other], matches["qat"]
        if first is None or second is None:
            continue
        paired = difference(first, second)
        if paired is not None:
            found[f"qat - {other}"] = paired.in_table
    return found


def table(rows: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """Return the rows as Markdown, in percent, with the mean of each float training.

    Args:
        rows: Cells as from `run`, by float training and name of the row.
    """
    named = [*STAGES.values(), "QAT - calibrated", "QAT - control"]
    lines = [f"| mAP, % | {' | '.join(named)} |", "|---" * (len(named) + 1) + "|"]
    for training in dict.fromkeys(training for training, _ in rows):
        own = {name: row for (other, name), row in rows.items() if other == training}
        for name, row in own.items():
            cells = [f"{100 * row[stage]:.1f}" for stage in STAGES]
            cells += [row.get(f"qat - {other}", "") for other in ("calibrated", "control")]
            lines.append(f"| {training}, {name} | {' | '.join(cells)} |")
        if len(own) > 1:
            mean = {
                stage: 100 * statistics.mean(r[stage] for r in own.values()) for stage in STAGES
            }
            cells = [f"{mean[stage]:.1f}" for stage in STAGES]
            cells += [f"{mean['qat'] - mean[other]:+.2f}" for other in ("calibrated", "control")]
            lines.append(f"| {training}, mean | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the requested rows and print the table after each; finished rows are not run again."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("--annotations", "--images", "--checkpoint"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, default=Path("runs/yolox_nano_qat"))
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=list(TRAININGS))
    parser.add_argument("--splits", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=6, help="of the quantized training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args(argv)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for training in arguments.trainings:
        for number in arguments.splits:
            for half in HALVES:
                name = f"split {number}, trained on the {half} half"
                rows[training, name] = run(arguments, training, number, half)
                print(f"{table(rows)}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
