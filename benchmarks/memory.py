"""Measure whether a rank's memory grows over a long quantization-aware training.

    python -m benchmarks.memory [--steps 2000] [--ranks 2] [--work-dir runs/memory]

Trains a narrow SSD-FPN on the embedded digits with loader processes, checkpoints, evaluations, LSQ
and a weight average. It records every rank's resident memory and prints it by hundreds of steps.
The first hundreds fill caches; what matters is the slope of the second half.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

CONFIG = """
_base_ = [{base!r}]
data_root = {data!r}
model = dict(
    backbone=dict(base_channels=8, stem_channels=8),
    neck=dict(in_channels=[16, 32, 64], out_channels=16),
    bbox_head=dict(in_channels=(16, 16, 16)))
data = dict(samples_per_gpu=2, workers_per_gpu=1)
custom_imports = dict(imports=['benchmarks.resident_memory_hook'], allow_failed_imports=False)
custom_hooks = [dict(type='ResidentMemoryHook', folder={folder!r}, interval=20)]
checkpoint_config = dict(steps=250)
evaluation = dict(interval=10)
quant = dict(
    _delete_=True,
    learned='lsq',
    ema=dict(momentum=0.01),
    schedule=dict(calibration_batches=2),
    training={{'runner.max_epochs': {epochs}}})
"""
ROOT = Path(__file__).resolve().parent.parent
NUM_TRAIN, BATCH = 40, 2


def samples(path: Path) -> list[tuple[int, float]]:
    """Return the steps and MiB that the hook wrote for one rank."""
    rows = [line.split(",") for line in path.read_text().splitlines()]
    return [(int(step), float(mib)) for step, mib in rows]


def table(folder: Path, ranks: int) -> str:
    """Return MiB by step for each rank, and the growth of the second half per thousand steps."""
    found = [samples(folder / f"rank_{rank}.csv") for rank in range(ranks)]
    last = found[0][-1][0]
    marks = [last * tenth // 10 for tenth in range(1, 11)]
    lines = [
        "| step | " + " | ".join(f"rank {rank}, MiB" for rank in range(ranks)) + " |",
        "|---|" + "---|" * ranks,
    ]
    for mark in marks:
        cells = [f"{min(rows, key=lambda row: abs(row[0] - mark))[1]:.0f}" for rows in found]
        lines.append(f"| {mark} | " + " | ".join(cells) + " |")
    slopes = []
    for rows in found:
        half = [row for row in rows if row[0] > last // 2]
        slopes.append(f"{1000 * statistics.linear_regression(*zip(*half, strict=True)).slope:+.1f}")
    lines.append("| growth of the second half, MiB in 1,000 steps | " + " | ".join(slopes) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--work-dir", type=Path, default=Path("runs/memory"))
    arguments = parser.parse_args()
    folder = arguments.work_dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "digits"
    launcher = [sys.executable, "-m", "launcher"]
    if not data.exists():
        words = ["data", "digits", "--folder", str(data), "--num-train", str(NUM_TRAIN)]
        subprocess.run([*launcher, *words, "--num-val", "10", "--num-test", "10"], check=True)
    # The digits config processes its images twice per epoch.
    steps_an_epoch = 2 * NUM_TRAIN // (BATCH * arguments.ranks)
    config = folder / "memory.py"
    config.write_text(
        CONFIG.format(
            base=str(ROOT / "configs/digits/ssd_resnet_fpn_160.py"),
            data=str(data),
            folder=str(folder),
            epochs=arguments.steps // steps_an_epoch,
        )
    )
    options = ["--cfg-options", "runner.max_epochs=1", "evaluation.interval=1"]
    train = [*launcher, "train", str(config), "--work-dir", str(folder), *options]
    subprocess.run(train, check=True, cwd=ROOT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", str(arguments.ranks), "-m", "launcher", "qat", str(config)]
    checkpoint = str(folder / "float/float.pth")
    subprocess.run(
        [*torchrun, "--checkpoint", checkpoint, "--work-dir", str(folder)], check=True, cwd=ROOT
    )
    print(table(folder, arguments.ranks))


if __name__ == "__main__":
    main()
