"""The reference of the commands, from the parsers of the command line."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator, Mapping

from launcher.cli import DESCRIPTION, build_parsers, main
from launcher.command_line import auto
from launcher.commands.cluster import submit
from website.tables import code, table

PLACE = "reference/commands.md"
# An option in a help text that is not marked as code.
_OPTION = re.compile(r"(?<![\w`-])--[a-z][a-z-]*")
BEGIN = """\
# Commands

All commands with all their arguments, written from the parsers of the command line. On one rank a
command is `python -m launcher COMMAND`, on several
`torchrun --nproc-per-node N -m launcher COMMAND`. The words may be in any order. An unknown command
or option is an error that names the nearest one.

"""


def pages() -> dict[str, str]:
    """Return the page of all commands by its place in the site."""
    parser, children = build_parsers()
    shown = {"CONFIG": (auto.parser(), auto.HELP)}
    for name, child in children.items():
        shown[name] = (child, str(child.description))
        shown |= _children(name, child)
    parts = [BEGIN, _overview(shown), "\n## Exit codes\n\n", exit_codes(), "\n## `launcher`\n\n"]
    parts += [f"```text\n{DESCRIPTION}\n```\n\n", *_arguments(parser)]
    for name, (child, text) in shown.items():
        child.prog = f"launcher {name}" if name != "CONFIG" else "launcher"
        parts += [f"\n## `launcher {name}`\n\n", f"{_sentence(text)}\n\n", _usage(child)]
        parts += _arguments(child)
    return {PLACE: "".join(parts)}


def _children(
    name: str, parser: argparse.ArgumentParser
) -> dict[str, tuple[argparse.ArgumentParser, str]]:
    """Return the parsers of the commands below a command, each with its help."""
    found: dict[str, tuple[argparse.ArgumentParser, str]] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            found |= {f"{name} {n}": (p, texts[n]) for n, p in action.choices.items()}
    if name == "submit":
        sweep = argparse.ArgumentParser()
        submit.add_sweep(sweep)
        found["submit sweep"] = (sweep, submit.HELP_OF_SWEEP)
    return found


def _overview(shown: Mapping[str, tuple[argparse.ArgumentParser, str]]) -> str:
    rows = [(f"[`launcher {n}`](#{_anchor(n)})", _sentence(text)) for n, (_, text) in shown.items()]
    return table(("command", "what it does"), rows)


def _anchor(name: str) -> str:
    return f"launcher-{name.lower().replace(' ', '-')}"


def exit_codes() -> str:
    """Return a table of the exit codes, as the docstring of `main` has them."""
    text = inspect.getdoc(main) or ""
    found = re.findall(r"^- (\d+): (.*(?:\n  .*)*)", text, re.MULTILINE)
    return table(("code", "meaning"), ((n, _sentence(" ".join(t.split()))) for n, t in found))


def _sentence(text: str) -> str:
    """Return a help text as a sentence."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _usage(parser: argparse.ArgumentParser) -> str:
    # Of a fixed width, not the terminal's.
    formatter = argparse.HelpFormatter(parser.prog, width=96)
    groups = parser._mutually_exclusive_groups
    formatter.add_usage(parser.usage, parser._actions, groups, prefix="")
    return f"```text\n{formatter.format_help().strip()}\n```\n\n"


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the table of a parser's arguments, positional ones first."""
    actions = sorted(parser._actions, key=lambda action: bool(action.option_strings))
    rows = [
        (", ".join(map(code, _forms(action))), _help(action, parser))
        for action in actions
        if not isinstance(action, argparse._SubParsersAction | argparse._HelpAction)
    ]
    if rows:
        yield table(("argument", "meaning"), rows)
    else:
        yield "No arguments.\n"


def _forms(action: argparse.Action) -> list[str]:
    """Return how an argument is written: each name with its values."""
    if action.nargs == 0:
        return list(action.option_strings)
    default = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else (
        action.dest.upper() if action.option_strings else action.dest
    )  # fmt: skip
    name = action.metavar if isinstance(action.metavar, str) else default
    values = {"?": f"[{name}]", "+": f"{name} ...", "*": f"[{name} ...]"}.get(
        str(action.nargs),
        " ".join([name] * action.nargs) if isinstance(action.nargs, int) else name,
    )
    return [f"{option} {values}" for option in action.option_strings] or [values]


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    """Return the meaning of an argument.

    Raises:
        ValueError: The parser does not say what it means.
    """
    if not action.help:
        name = (action.option_strings or [action.dest])[0]
        raise ValueError(f"{parser.prog} does not say what {name} means; give it a help text")
    text = action.help % {**vars(action), "prog": parser.prog}
    if isinstance(action, argparse._AppendAction):
        text += "; may be given several times"
    needed = "; required" if action.required and action.option_strings else ""
    return _OPTION.sub(lambda found: code(found[0]), text.replace("<", "&lt;")) + needed
