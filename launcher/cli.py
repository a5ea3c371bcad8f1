"""Parse the command line, call the command, turn errors into an exit code."""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NoReturn

from dq.names import did_you_mean, hint
from dq.shipped import located, path_of, shipped
from dq.version import version
from launcher.command_line.missing import explained
from launcher.command_line.words import CONFIGS, ordered
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
from launcher.output import READER_LEFT, OutputLostError, guarded_output

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
    "init",
    "data",
    "coverage",
    "compare",
    "show",
    "watch",
    "sync",
    "submit",
    "jobs",
    "logs",
    "cancel",
    "doctor",
    "configs",
    "completion",
)
# Subpackages of `launcher.commands`, for the commands that are in one.
FOLDERS = {
    **dict.fromkeys(("submit", "jobs", "logs", "cancel"), "cluster."),
    **dict.fromkeys(("doctor", "configs", "completion"), "about."),
    **dict.fromkeys(("show", "watch"), "view."),
}

DESCRIPTION = """\
Distributed quantization-aware training, calibration and quantized evaluation of mmdet detectors.

  torchrun --nproc-per-node 2 -m launcher run CONFIG      float -> calibrated -> QAT, with a table
  python -m launcher eval CONFIG --checkpoint FILE.pth    one process, without torchrun

CONFIG is a file, or the name of a config that ships; `launcher configs` lists them.
Without a command, `launcher CONFIG` does what the config's `quantize` flag says: False trains in
float, True or 'training' trains quantization-aware, 'calibration' calibrates."""


# argparse's message about a word that is none of the choices; the list may be long.
_CHOICE = re.compile(
    r"(?P<what>.*invalid choice: '(?P<word>.*)') \(choose from (?P<known>.*)\)", re.DOTALL
)


class CommandLineEnd(SystemExit):
    """The command line was wrong or asked for help, and that has been printed.

    It has a class of its own because a user's code may raise SystemExit too, which is an error.
    """


class Parser(argparse.ArgumentParser):
    """A parser that prints usage errors as one line, from one rank only."""

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End the process after a help text was printed."""
        if message:
            print(message, end="", file=sys.stderr)
        raise CommandLineEnd(status)

    def error(self, message: str) -> NoReturn:
        """Print one line and end the process with the exit code of a user's mistake."""
        choice = _CHOICE.fullmatch(message)
        if choice is not None:
            known = [word.strip("'") for word in choice["known"].split(", ")]
            message, mend = choice["what"], hint(choice["word"], known)
        else:
            mend = self._mend(message) or f"see '{self.prog} --help'"
        line = f"{message}; {mend}"
        tell_once(line, USER_ERROR, lambda: say_line(line))
        raise CommandLineEnd(USER_ERROR)

    def _mend(self, message: str) -> str | None:
        """Return what to write instead of an unknown flag, or None.

        The flag may be one that only mmdet's tools have, belong to another command, or be misspelt.
        """
        from dq.detector.config.mmdet_flags import REFUSED_FLAGS

        _, _, unknown = message.partition("unrecognized arguments: ")
        known = sorted({name for parser in _family(self) for name in parser._option_string_actions})
        for word in unknown.split():
            flag = word.partition("=")[0]
            if flag in REFUSED_FLAGS:
                return REFUSED_FLAGS[flag]
            if flag in known:
                return f"{flag} is for {', '.join(_commands_with(self, flag))}"
            near = difflib.get_close_matches(flag, known, n=1, cutoff=0.7)
            if flag.startswith("--") and near:
                return f"did you mean {near[0]}?"
        return None


def _family(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Return a parser and the parsers of its commands."""
    found = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [each for child in action.choices.values() for each in _family(child)]
    return found


def _commands_with(parser: argparse.ArgumentParser, flag: str) -> list[str]:
    """Return the commands that have a flag."""
    children = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return [n for c in children for n, p in c.items() if flag in p._option_string_actions]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    return build_parsers()[0]


def build_parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser of the whole command line, and the parser of each command."""
    parser = Parser(
        prog="launcher",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version()}")
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


def quiet_imports() -> None:
    """Leave out what mmcv and torch say at every start.

    mmcv 1.x announces its successor, and torch warns about nvcc without a GPU.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="On January 1, 2023, MMCV will release v2.0.0")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code of the process.

    - 0: done.
    - 1: the environment failed (disk, network, a lost rank), an error was unexpected (one line with
      its type, its place and the file with its traceback), or a gate was missed.
    - 2: the user made a mistake; one rank prints one line on stderr.
    - 75: a signal stopped the training; ``--resume`` continues it.
    - 141: the output's reader has ended, as ``head`` does.
    """
    quiet_imports()
    words = list(sys.argv[1:] if argv is None else argv)
    debug = wants_debug(words)
    if not debug:
        # torch's C++ code also prints a stack trace of the errors that it raises. torch reads this
        # variable when it is imported, which happens later.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    with quiet_interpreter(debug=debug), guarded_output():
        try:
            arguments = parse(words)
            code: int = arguments.run(arguments)
            sys.stdout.flush()
            return code
        except KeyboardInterrupt:
            return INTERRUPTED
        except CommandLineEnd:
            raise
        except OutputLostError as error:
            return READER_LEFT if error.reader_left else report(error, debug=debug)
        except BaseException as error:
            # Compared by name, because importing the class would import torch here.
            if type(error).__name__ == "Stopped":
                return STOPPED
            return report(explained(error, _command_of(words)), debug=debug)


def _command_of(words: Sequence[str]) -> str:
    return next((word for word in words if word in COMMANDS), "CONFIG")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; its words may be in any order.

    Returns:
        The arguments; ``run`` is the function of the command. Without a command it is the function
        of the command that the config asks for. ``config`` is a path, also where the name of a
        shipped config was given, and ``command_line`` are the words with that path.

    Raises:
        ValueError: There is no command, and the config cannot be read or has a wrong ``quantize``.
        CommandLineEnd: The command line is wrong; a line about it has been printed.
    """
    parser, children = build_parsers()
    if not any(word in children for word in words):
        _refuse_misspelt(words[:1], children)
        words = [word if Path(word).exists() else path_of(word) or word for word in words]
    words = ordered(words, children)
    if words[:1] == ["auto"]:
        from launcher.command_line import auto

        words = auto.resolve(words[1:])
    arguments = parser.parse_args(words)
    arguments.debug = wants_debug(words)
    line = list(words)
    if given := getattr(arguments, "config", None):
        arguments.config = located(given)
        line[line.index(given)] = arguments.config
    arguments.command_line = tuple(line)
    return arguments


def _refuse_misspelt(first: Sequence[str], commands: Collection[str]) -> None:
    """Raise ValueError if the first word is no command, and neither file nor config."""
    for word in first:
        if word.startswith("-") or Path(word).exists() or path_of(word) is not None:
            continue
        near = difflib.get_close_matches(word, commands, n=1, cutoff=0.6)
        if near:
            raise ValueError(f"{word} is not a command; did you mean {near[0]}?")
        if word.endswith(CONFIGS):
            continue  # Reading it says what is near.
        lists = "`launcher --help` and `launcher configs` list them"
        raise ValueError(
            f"{word} is neither a command, a file nor a shipped config"
            f"{did_you_mean(word, shipped(), lists)}"
        )
