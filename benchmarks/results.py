"""Make the tables of results: configs by columns by seeds, each cell a chain of commands.

    python -m benchmarks.results --configs configs/bccd/ssd_mobilenet_fpn_160.py ... \
        --data DIR --seeds 0 1 2 --jobs 2 [--cfg-options KEY=VALUE ...] [--write docs/results.md]

``DIR/<the config's folder>`` is its data set. A column is a recipe of `configs/_base_`; the folder
of a cell has the config that joins detector and recipe. Columns are made in order, the cells of a
column in parallel. A cell ends with its stage's summary.json and is not made again if that exists,
so the benchmark can be stopped and restarted. `--table-only` writes the tables of the existing
cells, between the markers of the file if it has them.

`--variant NAME COLUMN KEY=VALUE ...` adds a column: an existing one with overrides, to measure a
setting. With `data.test.ann_file=DIR/.../val.txt` recipes are chosen on other images than those of
the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from mmcv import Config

from dq.tracking.record.matches import Matches, read_matches
from dq.tracking.reports.bootstrap import mean_difference

RECIPES = Path(__file__).resolve().parents[1] / "configs" / "_base_"
BEGIN, END = "<!-- made by benchmarks.results -->", "<!-- end -->"
# Exit code of `eval` if the exported model's mAP differs: it is measured nevertheless.
GATE_MISSED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of the table.

    Attributes:
        command: The launcher's command.
        stage: Folder of its summary.
        recipe: Config of `RECIPES` that is added to the detector's; none for float.
        options: Config overrides besides the user's; ``{parent}`` is the parent's checkpoint.
        parent: Column whose checkpoint it starts from.
        flags: Further words of the command.
        of: Column whose work dir this one shares, as another stage of the same command; empty for a
            work dir of its own.
        control: Column of the float detector that is trained further in the same way.
    """

    command: str
    stage: str
    recipe: str = ""
    options: tuple[str, ...] = ()
    parent: str = "float"
    flags: tuple[str, ...] = ()
    of: str = ""
    control: str = ""


def _control(of: str, recipe: str) -> Column:
    """Return the control of a column: the same steps and rates without quantization."""
    return Column(
        command="qat", stage="control", recipe=recipe, flags=("--control", "--reuse"), of=of
    )


COLUMNS = {
    "float": Column(command="train", stage="float", parent=""),
    "int8 PTQ": Column(command="calibrate", stage="calibrated", recipe="quant_int8"),
    "int8 QAT": Column(
        command="qat", stage="qat", recipe="quant_int8", control="float, trained on"
    ),
    "float, trained on": _control("int8 QAT", "quant_int8"),
    "exported int8": Column(
        command="eval",
        stage="eval_onnxruntime",
        recipe="quant_int8",
        parent="int8 QAT",
        control="float, trained on",
    ),
    "W4A8 QAT": Column(command="qat", stage="qat", recipe="quant_w4a8", control="float, as W4A8"),
    "float, as W4A8": _control("W4A8 QAT", "quant_w4a8"),
    "W4A4 QAT": Column(command="qat", stage="qat", recipe="quant_w4a4"),
    "W4A4 QAT, linear at 8": Column(
        command="qat", stage="qat", recipe="quant_w4a4_linear8", control="float, as W4A4"
    ),
    "float, as W4A4": _control("W4A4 QAT, linear at 8", "quant_w4a4_linear8"),
    "int8 power-of-two": Column(command="qat", stage="qat", recipe="quant_int8_power2"),
}
# What the differences of a table are to.
TO_FLOAT, TO_CONTROL = "float", "its control"
METRICS = {"mAP": "VOC metric (IoU 0.5)", "bbox_mAP": "COCO metric (IoU 0.5 to 0.95)"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One config, seed and column below a folder."""

    root: Path
    config: Path
    seed: int
    column: str

    @property
    def what(self) -> Column:
        """Its column."""
        return COLUMNS[self.column]

    @property
    def folder(self) -> Path:
        """Its work dir."""
        name = f"{self.config.parent.name}-{self.config.stem}"
        column = (self.what.of or self.column).replace(",", "").replace(" ", "_")
        return self.root / name / f"seed{self.seed}" / column

    @property
    def summary(self) -> Path:
        """The file whose existence means that it is finished."""
        return self.folder / self.what.stage / "summary.json"

    @property
    def parent(self) -> Path:
        """The checkpoint that it starts from."""
        other = Cell(root=self.root, config=self.config, seed=self.seed, column=self.what.parent)
        return other.folder / other.what.stage / f"{other.what.stage}.pth"

    def config_text(self) -> str:
        """Return the config that joins detector and recipe.

        The recipe replaces the ``quant`` section of a detector that has one.
        """
        detector = self.config.resolve()
        if not self.what.recipe:
            return f"_base_ = {[str(detector)]}\n"
        recipe = RECIPES / f"{self.what.recipe}.py"
        if "quant" not in Config.fromfile(detector):
            return f"_base_ = {[str(detector), str(recipe)]}\n"
        section = {"_delete_": True, **Config.fromfile(recipe).quant}
        return f"_base_ = {[str(detector)]}\nquant = {section!r}\n"


def add_variant(name: str, column: str, *options: str) -> None:
    """Add a column that is another one with config overrides.

    Raises:
        ValueError: There is no such column, or a column of this name exists.
    """
    if column not in COLUMNS:
        known = ", ".join(map(repr, COLUMNS))
        raise ValueError(f"--variant: there is no column {column!r}; give one of {known}")
    if name in COLUMNS:
        raise ValueError(f"--variant: there is a column {name!r} already; choose another name")
    COLUMNS[name] = replace(COLUMNS[column], options=(*COLUMNS[column].options, *options))


def commands(cell: Cell, options: Sequence[str], threads: int = 1) -> list[list[str]]:
    """Return the launcher's arguments that make one cell; its parent must exist."""
    what, config = cell.what, str(cell.folder / "config.py")
    shared = ["--work-dir", str(cell.folder), "--seed", str(cell.seed)]
    shared += ["--threads", str(threads)]
    chosen = [*options, *(o.format(parent=cell.parent) for o in what.options)]
    shared += ["--cfg-options", *chosen] if chosen else []
    training = ["--no-validate", "--resume"]
    if what.command == "train":
        return [["train", config, *training, *shared]]
    given = ["--checkpoint", str(cell.parent)]
    if what.command != "eval":
        more = training if what.command == "qat" else []
        return [[what.command, config, *given, *more, *what.flags, *shared]]
    model = cell.folder / "export" / f"{cell.folder.name}.onnx"
    backend = ["--backend", "onnxruntime"]
    return [
        ["export", config, *given, *shared],
        ["eval", str(model), config, *backend, *given, *shared],
    ]


def make(cell: Cell, options: Sequence[str], ranks: int, threads: int) -> bool:
    """Run the commands of a cell, with output in ``log.txt``; return whether it is finished."""
    if cell.summary.is_file():
        return True
    if cell.what.parent and not cell.parent.is_file():
        return False
    cell.folder.mkdir(parents=True, exist_ok=True)
    (cell.folder / "config.py").write_text(cell.config_text())
    start = [sys.executable, "-m", "launcher"]
    if ranks > 1:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        start += ["--nproc-per-node", str(ranks), "-m", "launcher"]
    # One rank must not use all cores, because other cells run at the same time.
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with (cell.folder / "log.txt").open("a") as log:
        for words in commands(cell, options, threads):
            done = subprocess.run(
                [*start, *words], check=False, stdout=log, stderr=log, env=environment
            )
            if done.returncode not in (0, GATE_MISSED):
                break
    return cell.summary.is_file()


def metrics_of(cell: Cell) -> dict[str, float]:
    """Return a cell's metrics in percent; empty if it has not been measured."""
    if not cell.summary.is_file():
        return {}
    content = json.loads(cell.summary.read_text())
    # The result of an exported model may have only the metric that its gate compares.
    found = content.get("metrics") or {content["metric"]: content["integer"]}
    return {name: 100 * float(found[name]) for name in METRICS if name in found}


# By row, column and seed.
Rows = Mapping[str, Mapping[str, Mapping[int, float]]]


def table(rows: Rows) -> str:
    """Return the rows as Markdown: mean, spread over the seeds, mean difference to float."""
    columns = [c for c in COLUMNS if any(c in cells for cells in rows.values())]
    lines = ["| mAP, % | seeds | " + " | ".join(columns) + " |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for name, cells in rows.items():
        seeds = len(cells.get("float", {}))
        shown = [_cell(cells, c) for c in columns]
        lines.append(f"| {name} | {seeds} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Mapping[int, float]], column: str) -> str:
    values = row.get(column, {})
    if not values:
        return ""
    text = mean_text(list(values.values()))
    to_float = "" if column == "float" else _difference(values, row.get("float", {}))
    to_control = _difference(values, row.get(COLUMNS[column].control, {}))
    shown = [to_float, f"{to_control} to its control" if to_control else ""]
    return f"{text} ({'; '.join(filter(None, shown))})" if any(shown) else text


def mean_text(values: Sequence[float]) -> str:
    """Return the mean, and the standard deviation of several values."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _difference(values: Mapping[int, float], others: Mapping[int, float]) -> str:
    """Return the mean difference of the seeds that both have; empty if there are none.

    Per seed, because a detector is compared with the float detector that it came from.
    """
    found = [value - others[seed] for seed, value in values.items() if seed in others]
    return f"{statistics.mean(found):+.1f}" if found else ""


def tables(cells: Sequence[Cell]) -> str:
    """Return one table for each metric that was measured."""
    parts = []
    for metric, title in METRICS.items():
        rows: dict[str, dict[str, dict[int, float]]] = {}
        for cell in cells:
            value = metrics_of(cell).get(metric)
            if value is not None:
                row = rows.setdefault(f"{cell.config.parent.name}/{cell.config.stem}", {})
                row.setdefault(cell.column, {})[cell.seed] = value
        if rows:
            parts.append(f"{title}:\n\n{table(rows)}")
    parts += [intervals(cells, of) for of in (TO_FLOAT, TO_CONTROL)]
    return "\n".join(part for part in parts if part)


def intervals(cells: Sequence[Cell], of: str) -> str:
    """Return differences with their 95 % intervals over images, as Markdown.

    Empty if nothing can be compared. The difference of several seeds is their mean.

    Args:
        cells: Those of the table.
        of: `TO_FLOAT` or `TO_CONTROL`.
    """
    pairs: dict[tuple[str, str], list[tuple[Matches, Matches]]] = {}
    for cell in cells:
        other = "float" if of == TO_FLOAT else cell.what.control
        if other in ("", cell.column):
            continue
        pair = [read_matches(c.summary.parent) for c in (replace(cell, column=other), cell)]
        if pair[0] is not None and pair[1] is not None:
            row = f"{cell.config.parent.name}/{cell.config.stem}"
            pairs.setdefault((row, cell.column), []).append((pair[0], pair[1]))
    rows: dict[str, dict[str, str]] = {}
    for (name, column), own in pairs.items():
        found = mean_difference(own)
        if found is not None:
            rows.setdefault(name, {})[column] = found.in_table
    columns = [c for c in COLUMNS if any(c in row for row in rows.values())]
    if not columns:
        return ""
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {n} | {' | '.join(r.get(c, '') for c in columns)} |" for n, r in rows.items() if r
    ]
    title = f"COCO metric, difference to {of}, with 95 % of a paired bootstrap over images"
    return f"{title}:\n\n" + "\n".join(lines) + "\n"


def between_markers(text: str, made: str, begin: str = BEGIN) -> str:
    """Return ``text`` with ``made`` between its markers, which are added if it has none."""
    before, found, rest = text.partition(begin)
    if not found or END not in rest:
        return f"{text.rstrip()}\n\n{begin}\n\n{made}\n{END}\n".lstrip()
    return f"{before}{begin}\n\n{made}\n{END}{rest.split(END, 1)[1]}"


def cells_of(given: argparse.Namespace) -> Iterator[Cell]:
    """Yield the requested cells, parents before children."""
    for column in (c for c in COLUMNS if c in given.columns):
        for seed in given.seeds:
            for config in given.configs:
                yield Cell(root=given.root, config=config, seed=seed, column=column)


def options_of(given: argparse.Namespace, config: Path) -> list[str]:
    """Return the config overrides of all of a config's cells."""
    found = [f"data_root={given.data / config.parent.name}"] if given.data else []
    return [*found, *given.cfg_options]


def main(argv: Sequence[str] | None = None) -> int:
    """Make the missing cells and write the tables; return 1 if a cell failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--configs", type=Path, nargs="+", required=True)
    parser.add_argument("--columns", nargs="*", choices=COLUMNS, default=list(COLUMNS))
    parser.add_argument("--variant", nargs="+", action="append", default=[])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ranks", type=int, default=1, help="of each cell's training")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--root", type=Path, default=Path("runs/results"))
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--cfg-options", nargs="+", default=[])
    parser.add_argument("--write", type=Path, help="the Markdown file")
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    given = parser.parse_args(argv)
    for words in given.variant:
        if len(words) < 2:
            parser.error("--variant needs a name, a column, and settings as KEY=VALUE")
        add_variant(*words)
        given.columns.append(words[0])
    cells = list(cells_of(given))
    failed: list[Cell] = []

    def run(cell: Cell) -> None:
        if not make(cell, options_of(given, cell.config), given.ranks, given.threads):
            failed.append(cell)
            print(f"failed: {cell.folder / 'log.txt'}", flush=True)

    for column in [] if given.table_only else COLUMNS:
        with ThreadPoolExecutor(given.jobs) as pool:
            list(pool.map(run, (cell for cell in cells if cell.column == column)))
    made = tables(cells)
    print(made)
    if given.write:
        text = given.write.read_text() if given.write.is_file() else "# Results\n"
        given.write.write_text(between_markers(text, made))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
