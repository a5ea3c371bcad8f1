"""Measure images/s of a training with tracking on and off, in pairs, alternating.

    python -m benchmarks.tracking CONFIG [--pairs 5] [--work-dir DIR] [--cfg-options ...]

Both sides write metrics.jsonl, which costs microseconds a row; "on" feeds W&B offline too.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from dq.tracking.rows import METRICS, rows_of_kind


def images_per_s(arguments: argparse.Namespace, name: str, mode: str) -> float:
    """Train once and return the median over the logged rows, the first left out."""
    folder = Path(arguments.work_dir, name)
    words = [sys.executable, "-m", "launcher", "train", arguments.config, "--no-validate"]
    words += ["--work-dir", str(folder), "--wandb", mode]
    if arguments.cfg_options:
        words += ["--cfg-options", *arguments.cfg_options]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    rows = rows_of_kind(folder / "float" / METRICS, "train")[1:]
    return statistics.median(row["images_per_s"] for row in rows)


def main() -> None:
    """Print each pair, and the median of their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--work-dir", default="runs/benchmark_tracking")
    parser.add_argument("--cfg-options", nargs="+", default=[])
    arguments = parser.parse_args()
    ratios = []
    for number in range(arguments.pairs):
        # The order changes, so that a machine that warms up favours neither.
        modes = ("offline", "disabled") if number % 2 else ("disabled", "offline")
        speed = {mode: images_per_s(arguments, f"{mode}{number}", mode) for mode in modes}
        ratios.append(speed["offline"] / speed["disabled"])
        print(f"on {speed['offline']:.1f} off {speed['disabled']:.1f} images/s: {ratios[-1]:.3f}")
    print(f"median of {len(ratios)} pairs: {statistics.median(ratios):.3f} of the speed without")


if __name__ == "__main__":
    main()
