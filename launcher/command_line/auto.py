"""Choose the command for ``launcher CONFIG`` by the config's ``quantize`` flag."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from launcher.command_line.arguments import (
    add_checkpoint,
    add_common,
    add_control,
    add_reuse,
    add_training,
)
from launcher.config import command_for
from launcher.failure import DEBUG

HELP = (
    "do what the config's `quantize` flag says: train in float, train quantization-aware, calibrate"
)

# Flags that only some of the commands have, by their names in argparse.
_FLAGS = {
    "checkpoint": ("--checkpoint", ("calibrate", "qat")),
    "trust_checkpoint": ("--trust-checkpoint", ("train", "calibrate", "qat")),
    "resume": ("--resume", ("train", "qat")),
    "no_validate": ("--no-validate", ("train", "qat")),
    "control": ("--control", ("qat",)),
    "deterministic": ("--deterministic", ("train", "qat")),
    "auto_scale_lr": ("--auto-scale-lr", ("train", "qat")),
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``launcher CONFIG``: it has the options of all its commands."""
    from launcher.cli import Parser

    made = Parser(prog="launcher", allow_abbrev=False)
    add_common(made)
    add_checkpoint(made, what="where calibration and QAT begin", required=False)
    add_training(made)
    add_control(made)
    add_reuse(made)
    made.add_argument(DEBUG, action="store_true", help="print the traceback of an error")
    return made


def resolve(words: Sequence[str]) -> list[str]:
    """Return the command line with the command that the config asks for.

    ``--cfg-options`` are applied to the config first, so they may set ``quantize``.

    Args:
        words: The config and further arguments, in any order.

    Raises:
        ValueError: The config cannot be read, the flag has an unknown value, or its command does
            not have one of the arguments.
    """
    from dq.detector.config.read import read_config

    given = parser().parse_args(list(words))
    config = read_config(given.config, given.cfg_options)
    flag = config.get("quantize", False)
    command = command_for(flag)
    _refuse_foreign(given, command, flag)
    return [command, *words]


def _refuse_foreign(given: argparse.Namespace, command: str, flag: object) -> None:
    for name, (option, commands) in _FLAGS.items():
        if getattr(given, name) and command not in commands:
            mend = (
                "to calibrate it or to start QAT from it, add --cfg-options quantize=calibration or"
                " quantize=training; to start a float training from it, add load_from=FILE.pth"
                if name == "checkpoint"
                else "leave it out"
            )
            raise ValueError(
                f"{option} is not for `{command}`, which quantize={flag!r} in {given.config} asks"
                f" for; {mend}"
            )
