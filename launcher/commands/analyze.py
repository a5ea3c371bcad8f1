"""``launcher analyze``: measure how much each quantizer disturbs the outputs."""

from __future__ import annotations

import argparse
from pathlib import Path

from launcher.command_line.arguments import add_checkpoint, add_common

HELP = "measure each quantizer's effect on the outputs (SQNR); table, plot and JSON"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_common(parser)
    add_checkpoint(parser, what="float (is calibrated first) or calibrated", required=True)
    parser.add_argument(
        "--target-sqnr",
        type=float,
        metavar="DB",
        help="raise quantizers to 16 bits until the outputs' SQNR is this high, in decibels",
    )
    parser.add_argument(
        "--max-raised", type=int, default=5, metavar="N", help="raise at most N (default 5)"
    )
    parser.add_argument(
        "--images", type=int, default=8, metavar="N", help="images to measure on (default 8)"
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=20,
        metavar="N",
        help="rows to print (default 20; 0 prints all)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write ``analyze/sensitivity.json`` and ``.png``; return 0.

    Raises:
        ValueError: A number is out of range, or the config or the checkpoint is wrong.
    """
    from dq.quant.ptq.settings import Mixed
    from dq.tracking.reports.sensitivity import sensitivity_table, write_sensitivity
    from launcher import stages
    from launcher.session import session

    if arguments.rows < 0:
        raise ValueError(f"--rows is {arguments.rows}; give a number from 1 up, or 0 for all")
    mixed = Mixed(
        max_raised=arguments.max_raised,
        target_sqnr=arguments.target_sqnr,
        images=arguments.images,
    )
    with session(arguments) as place:
        result = stages.analyzed(
            stages.begin_plan(arguments),
            place,
            Path(arguments.checkpoint),
            mixed=mixed,
            trusted=arguments.trust_checkpoint,
        )
        if result is not None:
            print(sensitivity_table(result, rows=arguments.rows or None))
            for path in write_sensitivity(place.experiment / "analyze", result):
                print(path)
    return 0
