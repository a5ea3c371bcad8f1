"""``launcher compare``: compare experiments in tables and reports."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from launcher.command_line.screen import screen_of
from launcher.command_line.written import write_text

HELP = "compare experiments: table, Markdown, CSV, JSON, an HTML report; needs no server"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "folders",
        metavar="RUN_DIR",
        nargs="*",
        type=Path,
        help="work dirs of `launcher run`, or folders that contain some (default: --project)",
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
            f"--{name}", metavar="FILE", type=Path, help=f"write {what} as {name.upper()}"
        )
    parser.add_argument(
        "--report", action="store_true", help="save a report in W&B (needs the extra `report`)"
    )
    parser.add_argument(
        "--details", type=int, default=8, metavar="N", help="experiments to plot (default 8)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the table, write the files that are asked for, and return 0."""
    from dq.tracking.reports.comparison import (
        as_json,
        comma_separated,
        differences,
        groups_of,
        lines_of,
        markdown,
    )
    from dq.tracking.reports.experiments import find_experiments

    folders = [*arguments.folders]
    if arguments.project is not None or not folders:
        folders.append(arguments.project or Path("runs"))
    experiments = find_experiments(folders)
    lines = lines_of(experiments)
    screen = screen_of()
    groups = groups_of(lines)
    for title, group in groups.items():
        if len(groups) > 1:
            screen.say(f"\n{title}")
        screen.table(group)
    changed = differences(experiments) if 1 < len(experiments) <= 20 else {}
    if len(experiments) == 2:
        for name, values in changed.items():
            screen.say(f"{name}: {'  |  '.join(f'{k}={v}' for k, v in values.items())}")
    texts: dict[Path | None, Callable[[], str]] = {
        arguments.markdown: lambda: markdown(lines),
        arguments.csv: lambda: comma_separated(lines),
        arguments.json: lambda: as_json(lines, changed),
    }
    if arguments.html is not None:
        from dq.tracking.reports.html_report import html_report

        chosen = {line.name: number for number, line in enumerate(lines[: arguments.details])}
        shown = sorted((e for e in experiments if e.name in chosen), key=lambda e: chosen[e.name])
        texts[arguments.html] = lambda: html_report(lines, shown, changed)
    for path, text in texts.items():
        if path is not None:
            write_text(path, text())
            screen.say(str(path))
    if arguments.report:
        from dq.tracking.reports.wandb_report import publish

        best = lines[: arguments.details]
        names = {line.name for line in best}
        address = publish(best, [e for e in experiments if e.name in names], changed)
        screen.say(address)
    return 0
