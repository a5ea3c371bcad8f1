"""``launcher quantize``: search for the cheapest recipe that keeps the metric."""

from __future__ import annotations

import argparse
import re

from launcher.command_line.arguments import add_checkpoint, add_common, add_images

HELP = "search for the cheapest recipe within a limit on the loss; write a table and a checkpoint"
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def seconds(text: str) -> float:
    """Return a time such as ``90``, ``90s``, ``20m`` or ``1.5h`` in seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; give 90s, 20m or 1.5h")
    return float(found[1]) * _UNITS[found[2]]


def points(text: str) -> float:
    """Return a number of points that is not negative."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of points such as 0.5")
    return value


def count(text: str) -> int:
    """Return a whole number that is not negative."""
    if not text.strip().isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of quantizers such as 5")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_common(parser)
    add_checkpoint(
        parser, what="the float checkpoint (default: the config's load_from)", required=False
    )
    add_images(parser)
    parser.add_argument(
        "--max-drop",
        type=points,
        required=True,
        metavar="POINTS",
        help="largest accepted loss of the metric against float, in points, such as 0.5",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="name of the metric, as in `launcher eval` (default: the data set's main metric)",
    )
    parser.add_argument(
        "--budget",
        type=seconds,
        metavar="TIME",
        help="start no new candidate after this time, such as 20m (default: no limit)",
    )
    parser.add_argument(
        "--target",
        metavar="NAME",
        help="the engine: use its rules, and its integer formats if the config has no preset",
    )
    parser.add_argument(
        "--max-raised",
        type=count,
        default=64,
        metavar="N",
        help="raise at most N quantizers to 16 bits (default 64)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Search, print the table, write the checkpoint; return 1 if the limit is not met."""
    from launcher import stages
    from launcher.report import say_search
    from launcher.session import session

    limits = stages.Limits(
        max_drop=arguments.max_drop,
        metric=arguments.metric,
        budget_s=arguments.budget,
        max_raised=arguments.max_raised,
    )
    with session(arguments) as place:
        plan = stages.begin_plan(arguments)
        if arguments.target is not None:
            plan = stages.with_target(plan, arguments.target)
        checkpoint, trusted = stages.starting_point(arguments, plan), arguments.trust_checkpoint
        stages.check_start(place, checkpoint, "quantize")
        if arguments.images is not None:
            plan = stages.with_images(plan, place, checkpoint, arguments.images, trusted=trusted)
        found = stages.searched(plan, place, checkpoint, limits, trusted=trusted)
        return say_search(place, plan, found, limits)
