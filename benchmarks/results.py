"""The table of results: configs by columns by seeds, each cell a chain of launcher commands.

    python -m benchmarks.results --configs configs/bccd/ssd_mobilenet_fpn_256.py ... \
        --seeds 0 1 2 --ranks 2 [--cfg-options data_root=DIR ...] [--write docs/results.md]

Every command's end is its stage's summary.json; one that is there is not run again, so the
benchmark can be stopped and started. `--table-only` writes the table of what is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of the table.

    Attributes:
        command: Of the launcher.
        stage: Folder of its summary.
        options: Config overrides beyond the user's.
        parent: Column whose checkpoint it begins from.
        value: Key of the summary that is shown.
    """

    command: str
    stage: str
    options: tuple[str, ...] = ()
    parent: str = "float"
    value: str = "value"


COLUMNS = {
    "float": Column(command="train", stage="float", parent=""),
    "int8 PTQ": Column(command="calibrate", stage="calibrated"),
    "int8 QAT": Column(command="qat", stage="qat"),
    "exported int8": Column(
        command="eval", stage="eval_onnxruntime", parent="int8 QAT", value="integer"
    ),
    "W4A8 QAT": Column(command="qat", stage="qat", options=("quant.preset=w4a8",)),
    "W4A4 QAT": Column(command="qat", stage="qat", options=("quant.preset=w4a4",)),
    "int8 power-of-two": Column(command="qat", stage="qat", options=("quant.preset=int8_power2",)),
}


def folder_of(root: Path, config: Path, seed: int, column: str) -> Path:
    """Return the work dir of one cell."""
    return root / f"{config.parent.name}-{config.stem}" / f"seed{seed}" / column.replace(" ", "_")


def commands(
    root: Path, config: Path, seed: int, column: str, options: Sequence[str]
) -> list[list[str]]:
    """Return the launcher's arguments that make one cell, whose parent is there."""
    what = COLUMNS[column]
    shared = ["--work-dir", str(folder_of(root, config, seed, column)), "--seed", str(seed)]
    chosen = [*options, *what.options]
    shared += ["--cfg-options", *chosen] if chosen else []
    if not what.parent:
        return [[what.command, str(config), "--no-validate", "--resume", *shared]]
    parent = COLUMNS[what.parent].stage
    checkpoint = folder_of(root, config, seed, what.parent) / parent / f"{parent}.pth"
    given = ["--checkpoint", str(checkpoint)]
    if what.command != "eval":
        more = ["--no-validate", "--resume"] if what.command == "qat" else []
        return [[what.command, str(config), *given, *more, *shared]]
    work = folder_of(root, config, seed, column)
    model = work / "export" / f"{work.name}.onnx"
    backend = ["--backend", "onnxruntime"]
    return [
        ["export", str(config), *given, *shared],
        ["eval", str(model), str(config), *backend, *given, *shared],
    ]


def value_of(root: Path, config: Path, seed: int, column: str) -> float | None:
    """Return one cell's metric in per cent, None where it has not been measured."""
    path = folder_of(root, config, seed, column) / COLUMNS[column].stage / "summary.json"
    if not path.is_file():
        return None
    return 100 * float(json.loads(path.read_text())[COLUMNS[column].value])


def table(rows: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Return the rows as Markdown, mean and spread (standard deviation) over the seeds."""
    lines = ["| mAP, % | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, cells in rows.items():
        shown = [_cell(cells.get(column, ())) for column in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = statistics.mean(values)
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ± {statistics.stdev(values):.1f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write the table; return 1 where a command failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--configs", type=Path, nargs="+", required=True)
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--root", type=Path, default=Path("runs/results"))
    parser.add_argument("--cfg-options", nargs="+", default=[])
    parser.add_argument("--write", type=Path, help="the Markdown file")
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    given = parser.parse_args(argv)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    start += ["--nproc-per-node", str(given.ranks), "-m", "launcher"]
    rows: dict[str, dict[str, list[float]]] = {}
    failed = 0
    for config in given.configs:
        row = rows.setdefault(f"{config.parent.name}/{config.stem}", {})
        for seed in given.seeds:
            for column in [c for c in COLUMNS if c in given.columns]:
                value = value_of(given.root, config, seed, column)
                if value is None and not given.table_only:
                    for words in commands(given.root, config, seed, column, given.cfg_options):
                        code = subprocess.run([*start, *words], check=False).returncode
                        failed += code not in (0, 3)
                        if code:
                            break
                    value = value_of(given.root, config, seed, column)
                if value is not None:
                    row.setdefault(column, []).append(value)
        if given.write:
            line = "python -m benchmarks.results " + " ".join(argv or sys.argv[1:])
            given.write.write_text(f"# Results\n\nMade by `{line}`.\n\n{table(rows)}")
    print(table(rows))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
