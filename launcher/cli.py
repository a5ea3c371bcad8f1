"""Parse the command line, call the command, turn errors into an exit code."""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from launcher.command_line.missing import explained
from launcher.command_line.words import ordered
from launcher.failure import (
    DEBUG,
    INTERRUPTED,
    STOPPED,
    USER_ERROR,
    quiet_interpreter,
    report,
    say_line,
    tell_once,
    wants_debug,
)

COMMANDS = (
    "train",
    "calibrate",
    "quantize",
    "qat",
    "eval",
    "analyze",
    "export",
    "bench",
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
# Subfolders of `launcher.commands`, of commands that are not in it.
FOLDERS = dict.fromkeys(("submit", "jobs", "logs", "cancel"), "cluster.")

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
        mend = self._mend(message) or f"see '{self.prog} --help'"
        line = f"{message}; {mend}"
        tell_once(line, USER_ERROR, lambda: say_line(line))
        raise SystemExit(USER_ERROR)

    def _mend(self, message: str) -> str | None:
        """Return what takes the place of a flag that is not known: mmdet's own, or a misspelt."""
        from dq.detector.config.mmdet_flags import REFUSED_FLAGS

        _, _, unknown = message.partition("unrecognized arguments: ")
        known = sorted({name for parser in _family(self) for name in parser._option_string_actions})
        for word in unknown.split():
            flag = word.partition("=")[0]
            if flag in REFUSED_FLAGS:
                return REFUSED_FLAGS[flag]
            if flag in known:
                return f"{flag} is for {', '.join(_commands_with(self, flag))}"
            near = difflib.get_close_matches(flag, known, n=1, cutoff=0.8)
            if flag.startswith("--") and near:
                return f"did you mean {near[0]}?"
        return None


def _family(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Return a parser and those of its commands."""
    found = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += action.choices.values()
    return found


def _commands_with(parser: argparse.ArgumentParser, flag: str) -> list[str]:
    """Return the commands that know a flag."""
    children = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return [n for c in children for n, p in c.items() if flag in p._option_string_actions]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    return build_parsers()[0]


def build_parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser of the whole command line, and that of each command."""
    parser = Parser(
        prog="launcher",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"launcher.commands.{FOLDERS.get(name, '')}{name}")
        child = commands.add_parser(
            name, help=module.HELP, description=module.HELP, allow_abbrev=False
        )
        module.add_arguments(child)
        child.add_argument(DEBUG, action="store_true", help="print the traceback of an error")
        child.set_defaults(run=module.run)
    children: dict[str, argparse.ArgumentParser] = dict(commands.choices)
    return parser, children


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit code.

    0: done. 2: the user's error, one line on stderr from one rank. 1: the world's (disk, ranks),
    what nobody foresaw (one line with its type, place and the file that has its traceback), or a
    gate that was missed. 75: stopped by a signal, to be gone on with ``--resume``.
    """
    # mmcv 1.x announces its successor at every start, torch that there is an nvcc but no GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="On January 1, 2023, MMCV will release v2.0.0")
    words = list(sys.argv[1:] if argv is None else argv)
    debug = wants_debug(words)
    if not debug:
        # torch's C++ prints the frames of what it then raises as an error too. It reads this when
        # it is imported, which is later.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    with quiet_interpreter(debug=debug):
        try:
            arguments = parse(words)
            code: int = arguments.run(arguments)
            return code
        except KeyboardInterrupt:
            return INTERRUPTED
        except Exception as error:
            return report(explained(error, _command_of(words)), debug=debug)
        except BaseException as error:
            # Named here alone: this module is imported before torch is.
            if type(error).__name__ == "Stopped":
                return STOPPED
            raise


def _command_of(words: Sequence[str]) -> str:
    return next((word for word in words if word in COMMANDS), "CONFIG")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return a command line's arguments, whatever order they stand in.

    Without a command, ``run`` among them is that of the command the config asks for.

    Raises:
        ValueError: There is no command, and the config does not say which, or cannot be read.
        SystemExit: A word cannot be understood; that has been said.
    """
    parser, children = build_parsers()
    words = ordered(words, children)
    if words[:1] == ["auto"]:
        from launcher.command_line import auto

        words = auto.resolve(words[1:])
    arguments = parser.parse_args(words)
    arguments.debug = wants_debug(words)
    return arguments
