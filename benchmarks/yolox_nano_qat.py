"""Quantized training of YOLOX-Nano, whose published checkpoint has no batch norms left: one table.

    python -m benchmarks.yolox_nano_qat --annotations train128.json --images JPEGImages \
        --checkpoint yolox_nano_coco.pth [--rows SGD AdamW] [--epochs 6] [--swap]

The images are split in the order of their ids. One half calibrates and trains, with flips only, the
other is measured; ``--swap`` exchanges them. Each row is a run of `launcher qat --control
--no-validate`, so the result is that of the last step, and the control is the float detector
trained further by the same steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.yolox_nano_ptq import CONFIG, split

# Row name: the float training that the recipe's numbers follow from.
ROWS = {
    "SGD": "optimizer = dict(lr=0.01)",
    "AdamW": "optimizer = dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-2)\n"
    "auto_scale_lr = dict(base_batch_size=8)",
}
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


def config_text(arguments: argparse.Namespace, row: str, halves: Sequence[Path]) -> str:
    """Return the config of a row.

    Args:
        arguments: Of the command line.
        row: Key of `ROWS`.
        halves: The annotations to train with and to measure with.
    """
    return TEXT.format(
        base=str(CONFIG.resolve()),
        train=str(halves[0].resolve()),
        test=str(halves[1].resolve()),
        images=f"{arguments.images.resolve()}/",
        passes=arguments.epochs / EPOCHS_OF_FLOAT,
        float_training=ROWS[row],
    )


def run(arguments: argparse.Namespace, row: str) -> dict[str, Any]:
    """Run a row and return its metrics, 0 to 1: ``start``, ``qat``, ``control``."""
    half = "second" if arguments.swap else "first"
    folder: Path = arguments.work_dir / f"{row}-{half}"
    folder.mkdir(parents=True, exist_ok=True)
    halves = split(arguments.annotations, arguments.work_dir)
    config = folder / "config.py"
    config.write_text(config_text(arguments, row, halves[::-1] if arguments.swap else halves))
    line = [sys.executable, "-m", "launcher", "qat", str(config), "--control", "--no-validate"]
    line += ["--checkpoint", str(arguments.checkpoint), "--work-dir", str(folder), "--reuse"]
    line += ["--threads", str(arguments.threads), "--wandb", "disabled"]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    qat, control = (
        json.loads((folder / stage / "summary.json").read_text()) for stage in ("qat", "control")
    )
    return {"start": qat["start"], "qat": qat["value"], "control": control["value"]}


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return the rows as Markdown, in percent."""
    lines = ["| mAP, % | int8 calibrated | int8 QAT | float, trained on |", "|---|---|---|---|"]
    for name, row in rows.items():
        values = (row["start"], row["qat"], row["control"])
        lines.append(f"| {name} | " + " | ".join(f"{100 * v:.1f}" for v in values) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the requested rows and print the table; finished rows are not run again."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("--annotations", "--images", "--checkpoint"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, default=Path("runs/yolox_nano_qat"))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--epochs", type=int, default=6, help="of the quantized training")
    parser.add_argument("--swap", action="store_true", help="train on the other half")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    print(table({row: run(arguments, row) for row in arguments.rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
