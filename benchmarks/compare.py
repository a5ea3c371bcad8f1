"""Measure how long `launcher compare` takes for many runs of many rows.

python -m benchmarks.compare [--runs 500] [--rows 10000] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from dq.tracking.record.run import Run, write_run
from dq.tracking.record.stage_summary import StageSummary, write_summary
from dq.tracking.reports.comparison import lines_of, markdown
from dq.tracking.reports.experiments import STAGES, find_experiments
from dq.tracking.reports.html_report import html_report


def fill(folder: Path, runs: int, rows: int) -> None:
    """Write experiments of three stages each; the rows are split over the two trained stages."""
    text = "".join(
        json.dumps({"kind": "train", "step": i, "time": 1.7e9 + i, "epoch": i / 1000,
                    "loss": 10 / (1 + i), "loss_cls": 5 / (1 + i), "loss_bbox": 5 / (1 + i),
                    "lr": 0.01, "grad_norm": 3.0, "images_per_s": 80.0, "loading_share": 0.02,
                    "memory_mib": 900.0, "phase": "train"}, separators=(",", ":")) + "\n"
        for i in range(rows // 2)
    )  # fmt: skip
    for number in range(runs):
        for stage in STAGES:
            place = folder / f"run_{number:03d}" / stage
            place.mkdir(parents=True)
            write_run(place, Run(id=f"{number}{stage}", experiment=f"run_{number}", stage=stage))
            value = 0.5 + number / 10 / runs
            summary = StageSummary(stage=stage, key="k", metric="mAP", value=value, seconds=100.0)
            write_summary(place, summary)
            if stage != "calibrated":
                (place / "metrics.jsonl").write_text(text)


def main() -> None:
    """Print the seconds for the table and for the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--rows", type=int, default=10000)
    parser.add_argument("--folder", help="where the runs are written (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        fill(Path(name), arguments.runs, arguments.rows)
        began = time.perf_counter()
        experiments = find_experiments([Path(name)])
        lines = lines_of(experiments)
        markdown(lines)
        table_s = time.perf_counter() - began
        html_report(lines, experiments[:8], {})
        print(f"{arguments.runs} runs of {arguments.rows} rows: table {table_s:.2f} s,"
              f" with the report of 8 {time.perf_counter() - began:.2f} s")  # fmt: skip


if __name__ == "__main__":
    main()
