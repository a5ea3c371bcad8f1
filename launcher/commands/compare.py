"""``launcher compare``: compare experiments in tables and reports."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.command_line.screen import screen_of
from launcher.command_line.written import check_outputs, write_text

if TYPE_CHECKING:
    from dq.tracking.reports.experiments import Experiment

# What is written into a file of each format.
WRITTEN = {
    "markdown": "the table",
    "csv": "the table",
    "json": "all numbers",
    "html": "a report in one file",
}
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
    for name, what in WRITTEN.items():
        parser.add_argument(
            f"--{name}", metavar="FILE", type=Path, help=f"write {what} as {name.upper()}"
        )
    parser.add_argument(
        "--report", action="store_true", help="save a report in W&B (needs the extra `report`)"
    )
    parser.add_argument(
        "--details", type=int, default=8, metavar="N", help="experiments to plot (default 8)"
    )
    parser.add_argument(
        "--serve",
        action="store_true",
        help="show the report in a browser on this machine, http://127.0.0.1:PORT, and keep it"
        " up to date until Ctrl-C",
    )
    parser.add_argument(
        "--port", type=int, metavar="N", help="with --serve: the port (default 8000; 0: any)"
    )
    parser.add_argument(
        "--interval",
        type=float,
        metavar="SECONDS",
        help="with --serve: time between two looks at the runs (default 10)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the table, write the files that are asked for, and return 0.

    Raises:
        ValueError: There is no run, a number is out of range, a file cannot be written, or the port
            is in use.
    """
    from dq.dist.rendezvous.environment import read_environment
    from dq.tracking.reports.comparison import (
        as_json,
        comma_separated,
        differences,
        groups_of,
        lines_of,
        markdown,
    )
    from dq.tracking.reports.experiments import find_experiments

    if arguments.details < 0:
        raise ValueError(f"--details is {arguments.details}; give 0 or more")
    interval_s = _interval(arguments)
    check_outputs({f"--{name}": getattr(arguments, name) for name in WRITTEN})
    if not read_environment().is_main:
        return 0
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
    texts: dict[str, Callable[[], str]] = {
        "markdown": lambda: markdown(lines),
        "csv": lambda: comma_separated(lines),
        "json": lambda: as_json(lines, changed),
        "html": lambda: _report(experiments, changed, arguments.details),
    }
    for name, text in texts.items():
        path: Path | None = getattr(arguments, name)
        if path is not None:
            write_text(path, text())
            screen.say(str(path))
    if arguments.report:
        from dq.tracking.reports.wandb_report import publish

        best = lines[: arguments.details]
        names = {line.name for line in best}
        address = publish(best, [e for e in experiments if e.name in names], changed)
        screen.say(address)
    if arguments.serve:
        _serve(folders, arguments, interval_s)
    return 0


def _report(
    experiments: Sequence[Experiment], changed: Mapping[str, Mapping[str, Any]], details: int
) -> str:
    from dq.tracking.reports.comparison import lines_of
    from dq.tracking.reports.html_report import html_report

    lines = lines_of(experiments)
    chosen = {line.name: number for number, line in enumerate(lines[:details])}
    shown = sorted((e for e in experiments if e.name in chosen), key=lambda e: chosen[e.name])
    return html_report(lines, shown, changed)


def _interval(arguments: argparse.Namespace) -> float:
    """Return the seconds between two looks at the runs.

    Raises:
        ValueError: It is not positive, or an option of --serve is given without it.
    """
    for name in ("port", "interval"):
        if getattr(arguments, name) is not None and not arguments.serve:
            raise ValueError(f"--{name} goes with --serve; give that too, or leave it out")
    interval_s: float = 10.0 if arguments.interval is None else arguments.interval
    if not 0 < interval_s < float("inf"):
        raise ValueError(f"--interval {interval_s:g} is not a time; give seconds above 0")
    return interval_s


def _serve(folders: Sequence[Path], arguments: argparse.Namespace, interval_s: float) -> None:
    """Serve the report until Ctrl-C."""
    from dq.tracking.live.served_report import HOST, LiveReport, open_port
    from dq.tracking.reports.comparison import differences
    from dq.tracking.reports.experiments import find_experiments

    def make(experiments: list[Experiment]) -> str:
        changed = differences(experiments) if 1 < len(experiments) <= 20 else {}
        return _report(experiments, changed, arguments.details)

    report = LiveReport(lambda: find_experiments(folders), make, interval_s)
    with open_port(8000 if arguments.port is None else arguments.port, report) as server:
        port = server.server_address[1]
        print(f"serving on http://{HOST}:{port}, Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
