"""What each part of a recipe is worth: trainings without it, and with it alone, over seeds.

    python -m benchmarks.ablation --config configs/digits/ssd_resnet_fpn_160.py --recipe w4a4 \
        --data DIR --seeds 0 1 2 [--cfg-options KEY=VALUE ...] [--training KEY=VALUE ...] \
        [--write docs/qat.md]

All trainings of a seed begin with the same float detector, and have the same steps, rates and
formats. ``--cfg-options`` are for the float detector too, ``--training`` only for the quantized
trainings. Rows are made in order, seed by seed, by `benchmarks.results`: the benchmark can be
stopped and started again. Rows that change a part instead of leaving it out are in `MORE`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.results import (
    METRICS,
    Cell,
    add_variant,
    between_markers,
    make,
    mean_text,
    metrics_of,
    options_of,
)

BEGIN = "<!-- made by benchmarks.ablation: {name} -->"
COLUMNS = {"w4a8": "W4A8 QAT", "w4a4": "W4A4 QAT, linear at 8"}
# The parts of a recipe, and the overrides without them.
WITHOUT: dict[str, tuple[str, ...]] = {
    "learned scales": ("quant.learned=None",),
    "distillation": ("quant.distill=None",),
    "early fixing of norms (0.8 instead of 0.2)": ("quant.schedule.freeze_norm_after=0.8",),
}
# Other changes, each of the whole recipe.
MORE: dict[str, tuple[str, ...]] = {
    # Over about the last tenth of 600 steps.
    "weights averaged": ("quant.ema.momentum=0.0167",),
    "distillation of the head only": ("quant.distill.features=[]",),
    "`lsq` instead of `lsq+`": ("quant.learned=lsq",),
    "ranges fixed from 0.7 on": ("quant.schedule.freeze_ranges_after=0.7",),
    "half of the rate": ("quant.rate=0.1",),
    "twice the rate": ("quant.rate=0.4",),
    "oscillating weights frozen": ("quant.oscillation.freeze_above=0.02",),
    "start without bias correction": ("quant.repairs=[channel_scales]",),
    "norms fixed from 0.5 on": ("quant.schedule.freeze_norm_after=0.5",),
    "norms fixed from the start": ("quant.schedule.freeze_norm_after=0.0",),
    "start by block reconstruction": (
        "quant.repairs=[channel_scales,reconstruct]",
        "quant.reconstruction_steps=100",
    ),
}
RECIPE = "the recipe"
NOTHING = "none of them"


def rows() -> dict[str, tuple[str, ...]]:
    """Return the overrides of each row, the most informative rows first."""
    found = {RECIPE: (), NOTHING: tuple(o for options in WITHOUT.values() for o in options)}
    found |= {f"without {part}": options for part, options in WITHOUT.items()}
    for part in WITHOUT:
        others = (options for name, options in WITHOUT.items() if name != part)
        found[f"only {part}"] = tuple(o for options in others for o in options)
    return found | MORE


def cells_of(
    root: Path, config: Path, recipe: str, seeds: Sequence[int], training: Sequence[str]
) -> dict[str, list[Cell]]:
    """Return the cells of each row, one for each seed.

    Args:
        root: Folder of all cells; the float detectors of `benchmarks.results` are there too.
        config: The detector's.
        recipe: A key of `COLUMNS`.
        seeds: Of the trainings.
        training: Overrides of all quantized trainings.
    """
    found: dict[str, list[Cell]] = {}
    for number, (row, options) in enumerate(rows().items()):
        name = f"ablation {recipe} {number}"
        add_variant(name, COLUMNS[recipe], *training, *options)
        found[row] = [Cell(root=root, config=config, seed=seed, column=name) for seed in seeds]
    return found


# By row and seed.
Values = Mapping[str, Mapping[int, float]]


def table(metrics: Mapping[str, Values]) -> str:
    """Return Markdown: mean and spread of each row, and its mean difference to the recipe.

    Args:
        metrics: The measured values by title of the metric.
    """
    titles = [title for title, values in metrics.items() if values]
    lines = ["|  | seeds | " + " | ".join(f"{t}, % | minus the recipe" for t in titles) + " |"]
    lines.append("|---" * (2 + 2 * len(titles)) + "|")
    names = [*rows(), "float"]
    for row in (n for n in names if any(n in metrics[t] for t in titles)):
        shown = [f"{len(metrics[titles[0]].get(row, {}))}"]
        for title in titles:
            values = metrics[title].get(row, {})
            mean = mean_text(list(values.values())) if values else ""
            shown += [mean, _minus(values, metrics[title].get(RECIPE, {}))]
        lines.append(f"| {row} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _minus(values: Mapping[int, float], recipe: Mapping[int, float]) -> str:
    """Return the mean difference of the seeds that both have, with each seed's own."""
    found = [value - recipe[seed] for seed, value in values.items() if seed in recipe]
    if not found or values == recipe:
        return ""
    each = ", ".join(f"{difference:+.1f}" for difference in found)
    return f"{statistics.mean(found):+.1f}" + (f" ({each})" if len(found) > 1 else "")


def measured(cells: Mapping[str, Sequence[Cell]]) -> dict[str, dict[str, dict[int, float]]]:
    """Return the metrics of all finished cells and of their float detectors."""
    found: dict[str, dict[str, dict[int, float]]] = {title: {} for title in METRICS.values()}
    starts = [replace(cell, column="float") for cell in cells[RECIPE]]
    for row, row_cells in {**cells, "float": starts}.items():
        for cell in row_cells:
            for name, value in metrics_of(cell).items():
                found[METRICS[name]].setdefault(row, {})[cell.seed] = value
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Make the missing cells and the table; return 1 if a cell failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--recipe", choices=COLUMNS, default="w4a4")
    parser.add_argument("--rows", nargs="+", choices=rows(), default=list(rows()))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--root", type=Path, default=Path("runs/results"))
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--cfg-options", nargs="+", default=[])
    parser.add_argument("--training", nargs="+", default=[])
    parser.add_argument("--write", type=Path, help="the Markdown file")
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    given = parser.parse_args(argv)
    options = options_of(given, given.config)
    cells = cells_of(given.root, given.config, given.recipe, given.seeds, given.training)
    failed = False
    for number in range(0 if given.table_only else len(given.seeds)):
        start = replace(cells[RECIPE][number], column="float")
        for cell in [start, *(cells[row][number] for row in given.rows)]:
            if not make(cell, options, 1, 1):
                failed = True
                print(f"failed: {cell.folder / 'log.txt'}", flush=True)
    text = table(measured(cells))
    print(text)
    if given.write:
        begin = BEGIN.format(name=f"{given.config.stem}, {given.recipe}")
        old = given.write.read_text() if given.write.is_file() else "# Ablation\n"
        given.write.write_text(between_markers(old, text, begin))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
