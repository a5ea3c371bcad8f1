"""``launcher calibrate``: post-training quantization."""

from __future__ import annotations

import argparse
from pathlib import Path

from launcher.arguments import add_checkpoint, add_common, add_reuse

HELP = "calibrate a float checkpoint on one rank (PTQ), evaluate the quantized detector"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_common(parser)
    add_checkpoint(parser, what="the float detector", required=True)
    add_reuse(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the stage and return the exit code."""
    from launcher import stages
    from launcher.report import say_result
    from launcher.session import session

    with session(arguments) as place:
        summary = stages.calibrated(
            stages.read_plan(arguments),
            place,
            Path(arguments.checkpoint),
            trusted=arguments.trust_checkpoint,
            reuse=arguments.reuse,
        )
        say_result(place, summary)
    return 0
