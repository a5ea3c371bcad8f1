"""Our rows: `launcher calibrate` and `launcher quantize` as a user calls them, then `export`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.ptq_peers.tools import timed_run

# `quantize` exits with 1 if no candidate meets the limit; it writes the best one all the same.
LIMIT_MISSED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """A row of ours.

    Attributes:
        title: In the table.
        command: Of the launcher.
        stage: Folder and name of the command's checkpoint.
        preset: Of the ``quant`` section.
        repairs: Of the ``quant`` section; None for the default.
        settings: All other settings of the ``quant`` section.
        words: Further words of the command.
    """

    title: str
    command: str = "calibrate"
    stage: str = "calibrated"
    preset: str = "int8"
    repairs: tuple[str, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()


OURS = {
    "ours": Own(title="**ours, calibrate**"),
    "ours-onnxruntime": Own(
        title="**ours, calibrate, `preset=onnxruntime`**", preset="onnxruntime"
    ),
    "ours-openvino": Own(title="**ours, calibrate, `preset=openvino`**", preset="openvino"),
    "ours-openvino-fast": Own(
        title="**ours, calibrate, `preset=openvino`, `zero_points=False`**",
        preset="openvino",
        settings={"zero_points": False},
    ),
    "ours-plain": Own(title="ours, calibrate, `repairs=[]`", repairs=()),
    "ours-uncorrected": Own(
        title="ours, calibrate, `repairs=[channel_scales]`", repairs=("channel_scales",)
    ),
    "ours-onnxruntime-uncorrected": Own(
        title="ours, calibrate, `preset=onnxruntime`, `repairs=[channel_scales]`",
        preset="onnxruntime",
        repairs=("channel_scales",),
    ),
    "ours-max-drop": Own(
        title="**ours, quantize --max-drop 0.5**",
        command="quantize",
        stage="quantize",
        words=("--max-drop", "0.5"),
    ),
}


def quantize(
    own: Own,
    config: Any,
    folder: Path,
    path: Path,
    *,
    checkpoint: Path,
    threads: int,
    limit_s: float,
) -> float:
    """Write one of our files and return the seconds of the command that quantized.

    An interrupted `quantize` goes on in the same folder.

    Args:
        own: What to run.
        config: mmcv's config with the data; its ``quant`` section is replaced but for the number
            of calibration images.
        folder: Of the runs.
        path: The file to write.
        checkpoint: The float checkpoint.
        threads: Of the command.
        limit_s: Seconds after which it is killed.

    Raises:
        RuntimeError: A command failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    schedule = config.quant["schedule"]
    config.quant = {"preset": own.preset, "schedule": schedule, **own.settings}
    if own.repairs is not None:
        config.quant["repairs"] = list(own.repairs)
    config.dump(str(folder / "config.py"))
    shared: list[object] = ["--work-dir", folder, "--threads", threads, "--seed", 0]
    start: list[object] = [sys.executable, "-m", "launcher"]
    given: list[object] = [folder / "config.py", "--checkpoint", checkpoint]
    seconds = timed_run(
        [*start, own.command, *given, *own.words, *shared],
        folder / f"{own.command}.log",
        limit_s=limit_s,
        accepted=(0, LIMIT_MISSED) if own.command == "quantize" else (0,),
    )
    made = folder / own.stage / f"{own.stage}.pth"
    if not made.is_file():
        raise RuntimeError(f"launcher {own.command} wrote no checkpoint")
    timed_run(
        [*start, "export", folder / "config.py", "--checkpoint", made, "--no-bench", *shared],
        folder / "export.log",
        limit_s=limit_s,
    )
    shutil.copyfile(folder / "export" / f"{folder.name}.onnx", path)
    return seconds
