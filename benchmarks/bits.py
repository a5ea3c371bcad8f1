"""Measure a detector at every width, after calibration and after quantized training, in one table.

    python -m benchmarks.bits CONFIG --checkpoint FLOAT.pth --work-dir DIR [--ranks 2]
        [--rows int8,w4a8] [--cfg-options KEY=VALUE ...] [--out TABLE.md]

Each row is one `launcher run` from the same float checkpoint; finished rows are not run again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from dq.tracking.record.stage_summary import StageSummary, read_summary

# Overrides of each row; below 8 bits training learns the scales (LSQ).
ROWS = {
    "int16": ("quant.preset=int16",),
    "int8": ("quant.preset=int8",),
    "int8_power2": ("quant.preset=int8_power2",),
    "w4a8": ("quant.preset=w4a8", "quant.learned=lsq"),
    "w4a4": ("quant.preset=w4a4", "quant.learned=lsq"),
}


def command(arguments: argparse.Namespace, stage: str, row: str | None) -> list[str]:
    """Return the command line of one launcher call."""
    work_dir = arguments.work_dir / (row or "float")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words += ["--nproc-per-node", str(arguments.ranks), "-m", "launcher", stage, arguments.config]
    words += ["--checkpoint", str(arguments.checkpoint), "--work-dir", str(work_dir)]
    options = [*arguments.cfg_options, *(ROWS[row] if row else ())]
    return [*words, "--cfg-options", *options] if options else words


def measure(arguments: argparse.Namespace, row: str) -> dict[str, StageSummary]:
    """Calibrate and train one row; return its summaries by stage."""
    subprocess.run(command(arguments, "run", row), check=True)
    found = {}
    for stage in ("calibrated", "qat"):
        summary = read_summary(arguments.work_dir / row / stage)
        assert summary is not None
        found[stage] = summary
    return found


def table(float_value: float, rows: dict[str, dict[str, StageSummary]]) -> str:
    """Return the Markdown table in percent, with the difference to float."""
    lines = ["| bits | float | PTQ | QAT |", "|---|---|---|---|"]
    for row, stages in rows.items():
        cells = [f"{100 * float_value:.2f}"]
        for stage in ("calibrated", "qat"):
            value = stages[stage].value
            cells.append(f"{100 * value:.2f} ({100 * (value - float_value):+.2f})")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the requested rows and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--cfg-options", nargs="+", default=[])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    subprocess.run(command(arguments, "eval", None), check=True)
    reference = read_summary(arguments.work_dir / "float" / "eval")
    assert reference is not None
    rows: dict[str, dict[str, StageSummary]] = {}
    for row in arguments.rows.split(","):
        rows[row] = measure(arguments, row)
        text = table(reference.value, rows)
        print(text, flush=True)
        if arguments.out:
            arguments.out.write_text(text)


if __name__ == "__main__":
    main()
