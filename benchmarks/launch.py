"""Measure a training in the launcher: start to first step, step, loading, evaluation, by ranks.

    python -m benchmarks.launch CONFIG --work-dir DIR [--ranks 1 2] [--write docs/tables/launch.md]
        [--cfg-options KEY=VALUE ...]

Each number of ranks trains one epoch in float and evaluates; one computing thread per rank. The
time to the first step starts before torchrun and includes imports, the data checks, and building.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dq.tracking.record.stage_summary import read_summary

CONFIG = """
_base_ = [{base!r}]
custom_imports = dict(imports=['benchmarks.step_times_hook'], allow_failed_imports=False)
custom_hooks = [dict(type='StepTimesHook', path={times!r}, priority='LOWEST')]
log_config = dict(interval=5)
runner = dict(max_epochs=1)
"""


def measure(given: argparse.Namespace, ranks: int) -> dict[str, float]:
    """Train and evaluate once on this number of ranks."""
    folder = (given.work_dir / f"ranks{ranks}").resolve()
    folder.mkdir(parents=True)
    config, times = folder / "config.py", folder / "steps.csv"
    config.write_text(CONFIG.format(base=str(given.config.resolve()), times=str(times)))
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    words += [str(ranks), "-m", "launcher", "train", str(config), "--no-validate"]
    words += ["--work-dir", str(folder), "--threads", "1", "--wandb", "disabled"]
    if given.cfg_options:
        words += ["--cfg-options", *given.cfg_options]
    began = time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    steps = [float(line.split(",")[1]) for line in times.read_text().splitlines()]
    summary = read_summary(folder / "float")
    assert summary is not None
    rows = [json.loads(line) for line in _metrics(folder).read_text().splitlines()]
    shares = [row["loading_share"] for row in rows if "loading_share" in row]
    inside = [later - before for before, later in itertools.pairwise(steps[2:])]
    return {
        "ranks": ranks,
        "first_step_s": steps[0] - began,
        "step_s": statistics.median(inside),
        "loading_share": statistics.median(shares),
        "images_per_s": summary.images_per_s or 0.0,
    }


def _metrics(folder: Path) -> Path:
    (found,) = folder.rglob("metrics.jsonl")
    return found


def table(results: Sequence[dict[str, float]]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| ranks | start to first step, s | step, ms | waiting for data | evaluation, images/s |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['ranks']} | {r['first_step_s']:.1f} | {1000 * r['step_s']:.0f}"
        f" | {100 * r['loading_share']:.1f} % | {r['images_per_s']:.1f} |"
        for r in results
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every number of ranks and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--write", type=Path)
    parser.add_argument("--cfg-options", nargs="+", default=[])
    given = parser.parse_args(argv)
    made = table([measure(given, ranks) for ranks in given.ranks])
    if given.write:
        line = f"python -m benchmarks.launch {given.config} --work-dir DIR"
        given.write.write_text(f"Made by `{line}`.\n\n{made}")
    print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
