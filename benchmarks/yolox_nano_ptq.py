"""Post-training quantization of YOLOX-Nano, a hard case: one table, with and without repairs.

    python -m benchmarks.yolox_nano_ptq --annotations train128.json --images JPEGImages \
        --checkpoint yolox_nano_coco.pth [--only int8] [--export] [--work-dir runs/yolox_nano_ptq]

The images are split in the order of their ids: every second one calibrates, the rest is evaluated,
so no image serves both. Each row is a run of `launcher calibrate` with the options shown; with
--export each is also exported and evaluated in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dq.names import hint

CONFIG = Path(__file__).parents[1] / "configs" / "yolox" / "yolox_nano_416_ptq.py"
ENGINE = ("quant.preset=onnxruntime",)
MSE = ("quant.observer=mse",)
DEFAULT = ("quant.observer=weighted_mse",)
RAISED = ("quant.mixed.max_raised=5",)


def repairs(*steps: str) -> tuple[str, ...]:
    """Return the option that sets the repairs to these, or to none."""
    return (f"quant.repairs=[{','.join(steps)}]",)


EQUALIZE_BIAS = repairs("equalize", "bias")
SCALES_BIAS = repairs("channel_scales", "bias")

# Row name: options of `launcher calibrate` in addition to the config's.
ROWS: dict[str, tuple[str, ...]] = {
    "int8, default": (),
    "int8, weighted MSE": (*DEFAULT, *repairs()),
    "int8, weighted MSE, bias": (*DEFAULT, *repairs("bias")),
    "int8, weighted MSE, channel scales, bias": (*DEFAULT, *SCALES_BIAS),
    "int8, min-max": ("quant.observer=min_max", *repairs()),
    "int8, 99.99 percentile": ("quant.observer=percentile", *repairs()),
    "int8, entropy": ("quant.observer=entropy", *repairs()),
    "int8, MSE": (*MSE, *repairs()),
    "int8, MSE, bias": (*MSE, *EQUALIZE_BIAS),
    "int8, MSE, 5 raised": (*MSE, *repairs(), *RAISED),
    "int8, MSE, bias, 5 raised": (*MSE, *EQUALIZE_BIAS, *RAISED),
    "for ONNX Runtime, default": ENGINE,
    "for ONNX Runtime, min-max": (*ENGINE, "quant.observer=min_max", *repairs()),
    "for ONNX Runtime, MSE, bias": (*ENGINE, *MSE, *EQUALIZE_BIAS),
    "for ONNX Runtime, MSE, bias, 5 raised": (*ENGINE, *MSE, *EQUALIZE_BIAS, *RAISED),
    "for ONNX Runtime, MSE, channel scales, bias": (*ENGINE, *MSE, *SCALES_BIAS),
    "for OpenVINO, weighted MSE, channel scales, bias": (
        "quant.preset=openvino",
        *DEFAULT,
        *SCALES_BIAS,
    ),
    "for OpenVINO, MSE, bias": ("quant.preset=openvino", *MSE, *EQUALIZE_BIAS),
    "int16": ("quant.preset=int16", "quant.observer=min_max", *repairs()),
    "w8a16": ("quant.preset=w8a16", "quant.observer=min_max", *repairs()),
    "int8_power2, MSE, bias, 5 raised": (
        "quant.preset=int8_power2",
        *MSE,
        *EQUALIZE_BIAS,
        *RAISED,
    ),
    "w4a8, min-max weights": (
        "quant.preset=w4a8",
        *MSE,
        *repairs(),
        "quant.weight_range=min_max",
    ),
    "w4a8": ("quant.preset=w4a8", *MSE, *repairs()),
    "w4a8, bias": ("quant.preset=w4a8", *MSE, *EQUALIZE_BIAS),
    "w4a8, AdaRound": ("quant.preset=w4a8", *MSE, *repairs("adaround")),
    "w4a8, channel scales, AdaRound": (
        "quant.preset=w4a8",
        *MSE,
        *repairs("channel_scales", "adaround"),
    ),
    "w4a8, channel scales, reconstruction": (
        "quant.preset=w4a8",
        *MSE,
        *repairs("channel_scales", "bias", "reconstruct"),
    ),
    "w4a8, AdaRound, 5 raised": ("quant.preset=w4a8", *MSE, *repairs("adaround"), *RAISED),
}


def split(annotations: Path, folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write two COCO files, with every second image each, and return their paths.

    Args:
        annotations: A COCO file.
        folder: Folder for the two files.
        seed: 0 takes the images in the order of their ids; another seed shuffles them first.
    """
    content = json.loads(annotations.read_text())
    images = sorted(content["images"], key=lambda image: image["id"])
    if seed:
        random.Random(seed).shuffle(images)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "calibrate.json", folder / "evaluate.json"
    for path, chosen in zip(paths, (images[::2], images[1::2]), strict=True):
        ids = {image["id"] for image in chosen}
        boxes = [a for a in content["annotations"] if a["image_id"] in ids]
        path.write_text(json.dumps({**content, "images": chosen, "annotations": boxes}))
    return paths


def folder_of(arguments: argparse.Namespace, name: str) -> Path:
    """Return the work dir of a row."""
    folder: Path = arguments.work_dir / name.replace(", ", "-").replace(" ", "_")
    return folder


def start(arguments: argparse.Namespace, words: Sequence[object], options: Sequence[str]) -> int:
    """Run a launcher command in a separate process on the data's halves; return its exit code."""
    halves = split(arguments.annotations, arguments.work_dir)
    data = [
        option
        for part, half in (("train", halves[0]), ("test", halves[1]))
        for option in (f"data.{part}.ann_file={half}", f"data.{part}.img_prefix={arguments.images}")
    ]
    line = [sys.executable, "-m", "launcher", *map(str, words)]
    if arguments.threads:
        line += ["--threads", str(arguments.threads)]
    line += ["--cfg-options", *data, *options]
    return subprocess.run(line, check=False, stdout=subprocess.DEVNULL).returncode


def launch(command: str, arguments: argparse.Namespace, name: str, options: Sequence[str]) -> Any:
    """Run a launcher command and return its stage's summary."""
    folder = folder_of(arguments, name)
    words = (command, CONFIG, "--work-dir", folder, "--checkpoint", arguments.checkpoint)
    if start(arguments, words, options):
        raise RuntimeError(f"{name}: launcher {command} failed")
    stage = "eval" if command == "eval" else "calibrated"
    return json.loads((folder / stage / "summary.json").read_text())


def exported(
    arguments: argparse.Namespace, folder: Path, options: Sequence[str], backend: str
) -> Any:
    """Export a row's checkpoint, evaluate it in an engine, return that evaluation's summary."""
    checkpoint = ("--checkpoint", folder / "calibrated/calibrated.pth", "--work-dir", folder)
    model = folder / "export" / f"{folder.name}.onnx"
    if start(arguments, ("export", CONFIG, *checkpoint), options):
        raise RuntimeError(f"{folder}: launcher export failed")
    # A missed gate is not a failure here: both metrics are in the summary.
    if start(arguments, ("eval", CONFIG, model, "--backend", backend, *checkpoint), ()) > 1:
        raise RuntimeError(f"{folder}: launcher eval --backend {backend} failed")
    return json.loads((folder / f"eval_{backend}/summary.json").read_text())


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the rows as Markdown: mAP, its loss against the first row, seconds."""
    lines = ["| | mAP | loss | AP50 | time (s) |", "|---|---|---|---|---|"]
    reference = next(iter(rows.values()))["value"]
    for name, row in rows.items():
        loss = 100 * (reference - row["value"])
        half = 100 * row["metrics"]["bbox_mAP_50"]
        value, seconds = 100 * row["value"], row["seconds"]
        lines.append(f"| {name} | {value:.1f} | {loss:.1f} | {half:.1f} | {seconds:.0f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the requested rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--annotations", "--images", "--checkpoint"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, default=Path("runs/yolox_nano_ptq"))
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--export", action="store_true", help="evaluate in the engine, too")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    arguments = parser.parse_args(argv)
    if not any(arguments.only in name for name in ROWS):
        parser.error(f"--only {arguments.only}: no row has this name; {hint(arguments.only, ROWS)}")
    rows = {"float": launch("eval", arguments, "float", ())}
    for name, options in ROWS.items():
        if arguments.only in name:
            rows[name] = launch("calibrate", arguments, name, options)
            print(f"{name}: {100 * rows[name]['value']:.2f}", flush=True)
            if arguments.export:
                backend = "openvino" if "OpenVINO" in name else "onnxruntime"
                found = exported(arguments, folder_of(arguments, name), options, backend)
                print(f"{name}, exported: {100 * found['integer']:.2f}", flush=True)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
