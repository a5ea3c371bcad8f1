"""Measure the cost of tracking in a quantization-aware training: pairs with and without it.

    python -m benchmarks.tracking CONFIG --checkpoint FLOAT_OR_CALIBRATED.pth --work-dir DIR
        [--pairs 4] [--epochs 2] [--cfg-options KEY=VALUE ...]

"on" is the default: W&B offline, figures of all quantizers after each epoch, rows at the config's
log interval. "off" turns off everything that can be turned off. Its rows are still written; the
cost of a row is measured separately. The order alternates, so that a machine that warms up favours
neither. Processor time is given too, for machines with other load.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from dq.tracking.record.run import Run
from dq.tracking.tracker import FolderTracker

CONFIG = """
_base_ = [{base!r}]
custom_imports = dict(imports=['benchmarks.step_times_hook'], allow_failed_imports=False)
custom_hooks = [dict(type='StepTimesHook', path={times!r}, priority='LOWEST')]
tracking = dict({tracking})
quant = dict(_delete_=True, training={{'runner.max_epochs': {epochs}}})
"""
SIDES = {"on": ("offline", ""), "off": ("disabled", "quantizer_images=0, prediction_images=0")}
# The first steps fill caches.
WARM_UP = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """The speed of a training.

    Attributes:
        step_s: Median seconds of a step inside an epoch.
        whole_s: Seconds of all steps and of the work between epochs, per step.
        cpu_s: Processor seconds of the training's process per step inside an epoch.
        between_s: Seconds between epochs, per epoch.
        tracking_s: Seconds in the tracking hook per step inside an epoch.
        figures_s: Seconds in the tracking hook between epochs, per epoch: quantizer figures.
    """

    step_s: float
    whole_s: float
    cpu_s: float
    between_s: float
    tracking_s: float
    figures_s: float


def speed_of(lines: list[str]) -> Speed:
    """Return the speed of a training from the file of `StepTimesHook`."""
    steps = [[float(text) for text in line.split(",")] for line in lines[WARM_UP:]]
    pairs = [
        [later - before for before, later in zip(*pair, strict=True)]
        for pair in itertools.pairwise(steps)
    ]
    inside = [pair[1:] for pair in pairs if pair[0] == 0]
    between = [pair[1:] for pair in pairs if pair[0] != 0] or [[0.0, 0.0, 0.0]]
    return Speed(
        step_s=statistics.median(s for s, _, _ in inside),
        whole_s=(steps[-1][1] - steps[0][1]) / len(pairs),
        cpu_s=statistics.mean(c for _, c, _ in inside),
        between_s=statistics.mean(s for s, _, _ in between),
        tracking_s=statistics.mean(t for _, _, t in inside),
        figures_s=statistics.mean(t for _, _, t in between),
    )


def train(arguments: argparse.Namespace, side: str, number: int) -> Speed:
    """Train once in a separate process."""
    wandb, tracking = SIDES[side]
    folder = (arguments.work_dir / f"{side}{number}").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config, times = folder / "config.py", folder / "steps.csv"
    base = str(Path(arguments.config).resolve())
    config.write_text(CONFIG.format(base=base, times=str(times), tracking=tracking,
                                    epochs=arguments.epochs))  # fmt: skip
    words = [sys.executable, "-m", "launcher", "qat", str(config), "--no-validate"]
    words += ["--checkpoint", str(arguments.checkpoint), "--work-dir", str(folder)]
    words += ["--wandb", wandb, "--threads", str(arguments.threads)]
    if arguments.cfg_options:
        words += ["--cfg-options", *arguments.cfg_options]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return speed_of(times.read_text().splitlines())


def seconds_of_a_row() -> float:
    """Return how long the training's process takes to write a row of twelve numbers."""
    with tempfile.TemporaryDirectory() as name:
        tracker = FolderTracker(Path(name), Run(id="benchmark", experiment="e", stage="qat"))
        row = {f"loss_{i}": i / 7 for i in range(12)}
        began = time.perf_counter()
        for step in range(1000):
            tracker.log("train", step, row)
        seconds = time.perf_counter() - began
        tracker.finish(0)
    return seconds / 1000


def main() -> None:
    """Print each pair, and the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, default=Path("runs/benchmark_tracking"))
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cfg-options", nargs="+", default=[])
    arguments = parser.parse_args()
    ratios: dict[str, list[float]] = {"step_s": [], "whole_s": [], "cpu_s": []}
    shares, figures = [], []
    for number in range(arguments.pairs):
        order = ("on", "off") if number % 2 else ("off", "on")
        speeds = {side: train(arguments, side, number) for side in order}
        on, off = speeds["on"], speeds["off"]
        for name, found in ratios.items():
            found.append(getattr(on, name) / getattr(off, name))
        shares.append(on.tracking_s / statistics.mean([on.step_s, off.step_s]))
        figures.append(on.figures_s)
        print(
            f"pair {number + 1}: a step {1e3 * on.step_s:.1f} ms on, {1e3 * off.step_s:.1f} off;"
            f" processor {1e3 * on.cpu_s:.1f} and {1e3 * off.cpu_s:.1f};"
            f" between epochs {on.between_s:.2f} s and {off.between_s:.2f};"
            f" in the hook of tracking {1e3 * on.tracking_s:.3f} ms a step,"
            f" {on.figures_s:.2f} s an epoch",
            flush=True,
        )
    for name, what in (("step_s", "a step's time"), ("cpu_s", "a step's processor time"),
                       ("whole_s", "time including the work between epochs")):  # fmt: skip
        each = ", ".join(f"{ratio:.3f}" for ratio in ratios[name])
        print(f"{what}: {statistics.median(ratios[name]):.4f} of that without (pairs: {each})")
    print(f"the hook of tracking: {statistics.median(shares):.4f} of a step's time")
    print(f"figures of all quantizers: {statistics.median(figures):.2f} s an epoch")
    print(f"a row: {1e6 * seconds_of_a_row():.0f} microseconds")


if __name__ == "__main__":
    main()
