"""``launcher watch``: the state of a run, in a terminal, while it runs."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

HELP = "show a run while it runs: stage, time to go, loss, mAP, ranges, slow ranks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "folder", metavar="RUN_DIR", type=Path, help="a work dir, or the folder of one stage"
    )
    parser.add_argument("--once", action="store_true", help="print the state once and end")
    parser.add_argument(
        "--json", action="store_true", help="print the state once, as JSON, and end"
    )
    parser.add_argument(
        "--interval",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="time between two looks (default 2)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Show the run until nothing writes it any more, or until Ctrl-C, and return 0.

    Raises:
        ValueError: The folder is no run's, or the interval is not positive.
    """
    from dq.dist.rendezvous.environment import read_environment
    from dq.tracking.live.state import reader_of
    from dq.tracking.live.terminal import as_json, follow, print_once

    if not 0 < arguments.interval < float("inf"):
        raise ValueError(f"--interval {arguments.interval:g} is not a time; give seconds above 0")
    reader = reader_of(arguments.folder)
    if not read_environment().is_main:
        return 0
    if arguments.json:
        print(as_json(reader.read()), end="")
    elif arguments.once:
        print_once(reader.read())
    else:
        with contextlib.suppress(KeyboardInterrupt):
            follow(reader.read, arguments.interval)
    return 0
