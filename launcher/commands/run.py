"""``launcher run``: the whole chain, float -> calibrated -> QAT, with a table."""

from __future__ import annotations

import argparse
from pathlib import Path

from launcher.command_line.arguments import add_checkpoint, add_common, add_control, add_training

HELP = "train in float, calibrate, train quantization-aware; evaluate each and print a table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_common(parser)
    add_checkpoint(parser, what="a float checkpoint; skips float training", required=False)
    add_training(parser)
    add_control(parser)
    parser.add_argument(
        "--fresh", action="store_true", help="run every stage again, even those that are done"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the stages that are not done yet and return the exit code."""
    from launcher import stages
    from launcher.report import say_control, say_differences, say_table, say_verdict
    from launcher.session import session

    trusted, reuse = arguments.trust_checkpoint, not arguments.fresh
    with session(arguments) as place:
        plan = stages.begin_plan(arguments)
        training = {
            "resume": stages.asked_to_resume(arguments, plan),
            "sync_bn": arguments.sync_bn,
            "validate": not arguments.no_validate,
        }
        summaries = {}
        if arguments.checkpoint:
            checkpoint = Path(arguments.checkpoint)
            stages.check_start(place, checkpoint, "calibrated", "qat", "control")
        else:
            summaries["float"] = stages.train_float(plan, place, reuse=reuse, **training)
            checkpoint = place.experiment / "float" / str(summaries["float"].checkpoint)
        summaries["calibrated"] = stages.calibrated(
            plan, place, checkpoint, trusted=trusted, reuse=reuse
        )
        from_float = checkpoint
        # QAT starts with these ranges, so nothing is calibrated twice.
        checkpoint = place.experiment / "calibrated" / str(summaries["calibrated"].checkpoint)
        summaries["qat"] = stages.train_quantized(
            plan, place, checkpoint, trusted=trusted, reuse=reuse, **training
        )
        if arguments.control:
            summaries["control"] = stages.train_control(
                plan, place, from_float, trusted=trusted, reuse=reuse, **training
            )
        say_table(place, summaries, plan.bits)
        say_differences(place, list(summaries))
        if arguments.control:
            say_control(place, summaries["qat"], summaries["control"], from_float)
        return say_verdict(place, summaries["qat"], plan.guards)
