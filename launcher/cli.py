"""Parse the command line, call the command, turn errors into one line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

COMMANDS = (
    "train",
    "calibrate",
    "qat",
    "eval",
    "analyze",
    "export",
    "run",
    "data",
    "coverage",
    "compare",
    "sync",
    "submit",
    "jobs",
    "logs",
    "cancel",
)
USER_ERROR, WORLD_ERROR, STOPPED = 2, 1, 75

DESCRIPTION = """\
Distributed quantization-aware training, calibration and quantized evaluation of mmdet detectors.

  torchrun --nproc-per-node 2 -m launcher run CONFIG      float -> calibrated -> QAT, with a table
  python -m launcher eval CONFIG --checkpoint FILE.pth    alone, without torchrun

Without a command, `launcher CONFIG` does what the config's `quantize` flag says: False trains in
float, True or 'training' trains quantization-aware, 'calibration' calibrates."""


class Parser(argparse.ArgumentParser):
    """Print usage errors from one rank only, and abbreviate nothing."""

    def error(self, message: str) -> NoReturn:
        """End the process with one line."""
        if os.environ.get("RANK", "0") != "0":
            raise SystemExit(USER_ERROR)
        self.exit(USER_ERROR, f"error: {message}; see '{self.prog} --help'\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = Parser(
        prog="launcher",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"launcher.commands.{name}")
        child = commands.add_parser(
            name, help=module.HELP, description=module.HELP, allow_abbrev=False
        )
        module.add_arguments(child)
        child.set_defaults(run=module.run)
    return parser


def command_line(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the command that the config asks for when none is given."""
    words = list(arguments)
    if words and words[0].endswith(".py") and words[0] not in COMMANDS:
        return ["auto", *words]
    return words


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit code.

    0: done. 2: the user's error, one line on stderr from one rank. 1: the world's (disk, ranks),
    or a gate that was missed. 75: stopped by a signal, to be gone on with ``--resume``.
    """
    # mmcv 1.x announces its successor at every start, torch that there is an nvcc but no GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="On January 1, 2023, MMCV will release v2.0.0")
    words = command_line(sys.argv[1:] if argv is None else argv)
    try:
        if words and words[0] == "auto":
            from launcher.commands import auto

            words = auto.resolve(words[1:])
        arguments = build_parser().parse_args(words)
        code: int = arguments.run(arguments)
        return code
    except ValueError as error:
        return report(error, USER_ERROR)
    except (RuntimeError, OSError) as error:
        return report(error, WORLD_ERROR)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        # Named here alone: this module is imported before torch is.
        if type(error).__name__ != "Stopped":
            raise
        return STOPPED


def report(error: BaseException, code: int) -> int:
    """Print an error as one line unless another rank has printed it, and return ``code``."""
    if not getattr(error, "reported", False) and os.environ.get("RANK", "0") == "0":
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
    return code


def one_line(error: BaseException) -> str:
    """Return an error's message as one line.

    An error of a loader process carries that process's traceback; its last line is the message.
    """
    text = str(error)
    if text.startswith("Caught ") and "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    text = " ".join(text.split())
    return text or type(error).__name__
