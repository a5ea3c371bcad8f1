"""``launcher qat``: quantization-aware training."""

from __future__ import annotations

import argparse

from launcher.command_line.arguments import (
    add_checkpoint,
    add_common,
    add_control,
    add_images,
    add_reuse,
    add_training,
)

HELP = "train quantization-aware from a float or calibrated checkpoint, and evaluate the result"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_common(parser)
    add_checkpoint(
        parser, what="start from it: float or calibrated (default: load_from)", required=False
    )
    add_images(parser)
    add_training(parser)
    add_control(parser)
    add_reuse(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the stage and return the exit code."""
    from launcher import stages
    from launcher.report import say_control, say_differences, say_result, say_verdict
    from launcher.session import session

    if arguments.control and arguments.images is not None:
        raise ValueError(
            "--control trains the float detector on annotations, which --images does not have;"
            " leave --control out"
        )
    with session(arguments) as place:
        plan = stages.begin_plan(arguments)
        checkpoint, trusted = stages.starting_point(arguments, plan), arguments.trust_checkpoint
        # A config's resume_from is a checkpoint of the training itself.
        if arguments.checkpoint or plan.config.load_from:
            stages.check_start(place, checkpoint, "qat", *["control"] * arguments.control)
        if arguments.images is not None:
            plan = stages.with_images(
                plan, place, checkpoint, arguments.images, trusted=trusted, trains=True
            )
        how = {
            "resume": stages.asked_to_resume(arguments, plan),
            "sync_bn": arguments.sync_bn,
            "validate": not arguments.no_validate,
            "trusted": trusted,
            "reuse": arguments.reuse,
        }
        summary = stages.train_quantized(plan, place, checkpoint, **how)
        say_result(place, summary)
        if arguments.control:
            control = stages.train_control(plan, place, checkpoint, **how)
            say_result(place, control)
            say_control(place, summary, control, checkpoint)
            say_differences(place, ["qat", "control"])
        return say_verdict(place, summary, plan.guards)
