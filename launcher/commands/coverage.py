"""``launcher coverage``: which families of mmdet's configs can be quantized, as a table."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

HELP = "try one config of every family that mmdet ships, and write a table of what is quantized"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--families",
        type=lambda text: [name for name in text.split(",") if name],
        default=[],
        metavar="A,B",
        help="folders of mmdet's configs (default: all, which takes some 20 minutes)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.md",
        help="where the table goes (default: printed); with --families its other rows stay",
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes at a time")
    parser.add_argument(
        "--limit", type=float, default=300.0, metavar="SECONDS", help="for each (default 300)"
    )
    parser.add_argument(
        "--memory", type=int, default=8192, metavar="MIB", help="for each (default 8192)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Try the families, write the table, and return 1 when one crashed."""
    from dq.detector.coverage import cover, representatives, rows_of, table

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    configs = representatives(arguments.families)
    verdicts = cover(
        configs, jobs=arguments.jobs, limit_s=arguments.limit, limit_mib=arguments.memory
    )
    if arguments.out is None:
        print(table(configs, verdicts), end="")
    else:
        keep = arguments.families and arguments.out.is_file()
        before = arguments.out.read_text(encoding="utf-8") if keep else ""
        old_configs, old = rows_of(before)
        text = table({**old_configs, **configs}, {**old, **verdicts})
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text, encoding="utf-8")
    return int(any(verdict.verdict == "crashed" for verdict in verdicts.values()))
