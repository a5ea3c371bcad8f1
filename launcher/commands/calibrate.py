"""``launcher calibrate``: post-training quantization."""

from __future__ import annotations

import argparse

from launcher.command_line.arguments import add_checkpoint, add_common, add_images, add_reuse

HELP = "calibrate a float checkpoint on one rank (PTQ), and evaluate the quantized detector"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_common(parser)
    add_checkpoint(
        parser, what="the float checkpoint (default: the config's load_from)", required=False
    )
    add_images(parser)
    add_reuse(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the stage and return the exit code."""
    from launcher import stages
    from launcher.report import say_result
    from launcher.session import session

    with session(arguments) as place:
        plan = stages.begin_plan(arguments)
        checkpoint, trusted = stages.starting_point(arguments, plan), arguments.trust_checkpoint
        stages.check_start(place, checkpoint, "calibrated")
        if arguments.images is not None:
            plan = stages.with_images(plan, place, checkpoint, arguments.images, trusted=trusted)
        summary = stages.calibrated(plan, place, checkpoint, trusted=trusted, reuse=arguments.reuse)
        say_result(place, summary)
    return 0
