"""``launcher CONFIG`` without a command: the config's ``quantize`` flag decides."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from launcher.command_line.arguments import add_checkpoint, add_common, add_reuse, add_training
from launcher.config import command_for
from launcher.failure import DEBUG

# Flags of some of the commands, by what argparse calls them.
_FLAGS = {
    "checkpoint": ("--checkpoint", ("calibrate", "qat")),
    "trust_checkpoint": ("--trust-checkpoint", ("train", "calibrate", "qat")),
    "resume": ("--resume", ("train", "qat")),
    "no_validate": ("--no-validate", ("train", "qat")),
    "deterministic": ("--deterministic", ("train", "qat")),
    "auto_scale_lr": ("--auto-scale-lr", ("train", "qat")),
}


def resolve(words: Sequence[str]) -> list[str]:
    """Return the command line with the command that the config asks for.

    ``--cfg-options`` are laid over the config first, so ``quantize`` may be one of them.

    Args:
        words: The config and further arguments, in any order.

    Raises:
        ValueError: The config cannot be read, the flag has an unknown value, or an argument is not
            for the command that it asks for.
    """
    from dq.detector.config.read import read_config
    from launcher.cli import Parser

    parser = Parser(prog="launcher", allow_abbrev=False)
    add_common(parser)
    add_checkpoint(parser, what="where calibration and QAT begin", required=False)
    add_training(parser)
    add_reuse(parser)
    parser.add_argument(DEBUG, action="store_true")
    given = parser.parse_args(list(words))
    config = read_config(given.config, given.cfg_options)
    flag = config.get("quantize", False)
    command = command_for(flag)
    _refuse_foreign(given, command, flag)
    return [command, *words]


def _refuse_foreign(given: argparse.Namespace, command: str, flag: object) -> None:
    for name, (option, commands) in _FLAGS.items():
        if getattr(given, name) and command not in commands:
            mend = (
                "to calibrate or train quantized from it add --cfg-options quantize=calibration or"
                " quantize=training, to begin a float training with it load_from=FILE.pth"
                if name == "checkpoint"
                else "leave it out"
            )
            raise ValueError(
                f"{option} is not for `{command}`, which quantize={flag!r} in {given.config} asks"
                f" for; {mend}"
            )
