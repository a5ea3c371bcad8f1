"""Forward the options given to one command to another command."""

from __future__ import annotations

import argparse
from collections.abc import Container, Sequence


def forwarded(
    given: argparse.Namespace, parser: argparse.ArgumentParser, *, without: Container[str]
) -> list[str]:
    """Return the words that give another command the options in ``given`` that are not defaults.

    It checks every option of the other command, so that none is forgotten.

    Args:
        given: Arguments of a command with options of the same names.
        parser: Of the command that gets the words.
        without: Names of arguments that are not forwarded.
    """
    words: list[str] = []
    done: set[str] = set()
    for action in parser._actions:
        name = action.dest
        if name in without or name in done or not action.option_strings:
            continue
        if not hasattr(given, name) or getattr(given, name) == action.default:
            continue
        done.add(name)
        words += _words(action, getattr(given, name))
    return words


def _words(action: argparse.Action, value: object) -> list[str]:
    option = action.option_strings[0]
    if isinstance(action, argparse._StoreConstAction):  # Such as --debug.
        return [option]
    if isinstance(action, argparse._AppendAction):
        assert isinstance(value, Sequence)
        return [word for item in value for word in _assigned(option, item)]
    if action.nargs == "?" and value == action.const:
        return [option]
    if action.nargs in (None, "?"):
        return _assigned(option, value)
    assert isinstance(value, Sequence)
    return [option, *map(str, value)]


def _assigned(option: str, value: object) -> list[str]:
    """Return option and value as two words, or as one if the value looks like an option."""
    text = str(value)
    return [f"{option}={text}"] if text.startswith("-") else [option, text]
