"""``launcher compare``: which experiment won, and why."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from dq.tracking.comparison import Line

HELP = "compare experiments: table, Markdown, CSV, JSON, an HTML report; needs no server"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "folders",
        metavar="RUN_DIR",
        nargs="*",
        type=Path,
        help="work dirs of `launcher run`, or folders that hold some (default: --project)",
    )
    parser.add_argument(
        "--project",
        metavar="DIR",
        nargs="?",
        const=Path("runs"),
        type=Path,
        help="compare all experiments below this folder (default runs)",
    )
    for name, what in (("markdown", "the table"), ("csv", "the table"), ("json", "all numbers"),
                       ("html", "a report in one file")):  # fmt: skip
        parser.add_argument(
            f"--{name}", metavar="FILE", type=Path, help=f"write {what} there, as {name.upper()}"
        )
    parser.add_argument(
        "--report", action="store_true", help="save it as a report in W&B (extra `report`)"
    )
    parser.add_argument(
        "--details", type=int, default=8, metavar="N", help="experiments that are plotted (8)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the table, write what is asked for, and return 0."""
    from rich.console import Console

    from dq.tracking.comparison import (
        as_json,
        comma_separated,
        differences,
        groups_of,
        lines_of,
        markdown,
    )
    from dq.tracking.experiments import find_experiments

    folders = [*arguments.folders]
    if arguments.project is not None or not folders:
        folders.append(arguments.project or Path("runs"))
    experiments = find_experiments(folders)
    lines = lines_of(experiments)
    console = Console()
    if not console.is_terminal:
        console.width = 160
    groups = groups_of(lines)
    for title, group in groups.items():
        if len(groups) > 1:
            console.print(f"\n{title}", markup=False, highlight=False)
        console.print(_table(group))
    changed = differences(experiments) if 1 < len(experiments) <= 20 else {}
    if len(experiments) == 2:
        for name, values in changed.items():
            console.print(f"{name}: {'  |  '.join(f'{k}={v}' for k, v in values.items())}",
                          highlight=False, markup=False)  # fmt: skip
    texts: dict[Path | None, Callable[[], str]] = {
        arguments.markdown: lambda: markdown(lines),
        arguments.csv: lambda: comma_separated(lines),
        arguments.json: lambda: as_json(lines, changed),
    }
    if arguments.html is not None:
        from dq.tracking.html_report import html_report

        chosen = {line.name: number for number, line in enumerate(lines[: arguments.details])}
        shown = sorted((e for e in experiments if e.name in chosen), key=lambda e: chosen[e.name])
        texts[arguments.html] = lambda: html_report(lines, shown, changed)
    for path, text in texts.items():
        if path is not None:
            _write(path, text())
            console.print(str(path), highlight=False, markup=False)
    if arguments.report:
        from dq.tracking.wandb_report import publish

        best = lines[: arguments.details]
        names = {line.name for line in best}
        address = publish(best, [e for e in experiments if e.name in names], changed)
        console.print(address, highlight=False, markup=False)
    return 0


def _table(lines: Sequence[Line]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from dq.tracking.comparison import HEADS, cells

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for number, head in enumerate(HEADS.values()):
        justify = "left" if number in (0, 6, 10) else "right"
        table.add_column(head, justify=justify, no_wrap=number > 0, overflow="fold")  # type: ignore[arg-type]
    for line in lines:
        # As they stand: a name such as [lr=0.1] is no markup.
        table.add_row(*map(Text, cells(line)))
    return table


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {error.strerror}; give another file"
        ) from error
