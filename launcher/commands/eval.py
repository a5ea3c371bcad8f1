"""``launcher eval``: evaluate a checkpoint, quantized or float."""

from __future__ import annotations

import argparse
from pathlib import Path

from launcher.arguments import add_checkpoint, add_common

HELP = "evaluate a checkpoint on data.test: rounded where it is quantized, else in float"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_common(parser)
    add_checkpoint(parser, what="float, calibrated or QAT", required=True)
    parser.add_argument(
        "--float", action="store_true", dest="as_float", help="ignore quantizers, evaluate in float"
    )
    parser.add_argument(
        "--table",
        action="store_true",
        help="print and write the table of all stages that the work dir has the results of",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the stage and return the exit code."""
    from launcher import stages
    from launcher.report import say_metrics, say_table, stage_summaries
    from launcher.session import session

    with session(arguments) as place:
        plan = stages.read_plan(arguments)
        summary = stages.evaluated(
            plan,
            place,
            Path(arguments.checkpoint),
            as_float=arguments.as_float,
            trusted=arguments.trust_checkpoint,
        )
        say_metrics(place, summary)
        if arguments.table:
            say_table(place, stage_summaries(place), plan.settings.recipe)
    return 0
