"""``launcher train``: train a float detector."""

from __future__ import annotations

import argparse

from launcher.command_line.arguments import add_common, add_reuse, add_training, add_trust

HELP = "train the float detector, and evaluate it on data.test"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_common(parser)
    add_training(parser)
    add_trust(parser)
    add_reuse(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the stage and return the exit code."""
    from launcher import stages
    from launcher.report import say_result
    from launcher.session import session

    with session(arguments) as place:
        plan = stages.begin_plan(arguments)
        summary = stages.train_float(
            plan,
            place,
            resume=stages.asked_to_resume(arguments, plan),
            sync_bn=arguments.sync_bn,
            validate=not arguments.no_validate,
            reuse=arguments.reuse,
        )
        say_result(place, summary)
    return 0
