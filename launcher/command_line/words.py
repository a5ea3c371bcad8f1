"""Sort the words of a command line into the order that argparse needs.

argparse needs the command first, and an option with several values takes all words that follow.
After sorting, ``launcher --seed 3 train --cfg-options a=1 CONFIG`` works too.
"""

from __future__ import annotations

import argparse
from collections.abc import Container, Mapping, Sequence

# Endings of files, by which a word is recognised as not belonging to the option before it.
FILES = (".py", ".json", ".yml", ".yaml", ".onnx")
CONFIGS = FILES[:-1]
# The command whose remaining words are another command line.
NESTING = "submit"


def ordered(words: Sequence[str], parsers: Mapping[str, argparse.ArgumentParser]) -> list[str]:
    """Return the words with the command first, then positional arguments, then options.

    Args:
        words: As the user wrote them.
        parsers: The parser of each command.

    Returns:
        The words; if none of them is a command and one is a config, ``auto`` comes first.
    """
    sizes = _sizes(parsers)
    before, rest = _split_at_command(words, parsers, sizes)
    if rest and rest[0] == NESTING:
        return [NESTING, *before, *rest[1:]]
    command, others = rest[:1], [*before, *rest[1:]]
    # Commands may have options of the same name with another number of values.
    sizes |= _sizes({name: parsers[name] for name in command})
    places, options = _sorted(others, sizes)
    if not command and any(word.endswith(CONFIGS) for word in places):
        command = ["auto"]
    if any(_name(word) not in sizes for word in options if word.startswith("--")):
        return [*command, *others]  # Misspelt, or an option of a nested command.
    return [*command, *places, *options]


def _name(word: str) -> str:
    return word.partition("=")[0]


def _sizes(parsers: Mapping[str, argparse.ArgumentParser]) -> dict[str, int | str | None]:
    """Return the number of values of each option: a number, ``?`` or ``+``; None means one."""
    return {
        name: action.nargs
        for parser in parsers.values()
        for action in parser._actions
        for name in action.option_strings
    }


def _split_at_command(
    words: Sequence[str],
    parsers: Mapping[str, argparse.ArgumentParser],
    sizes: Mapping[str, int | str | None],
) -> tuple[list[str], list[str]]:
    """Return the words before the command, and the command with all words after it."""
    here = 0
    while here < len(words):
        if words[here] in parsers:
            return list(words[:here]), list(words[here:])
        taken = _taken(words, here, sizes, parsers)
        # Such as --json, which one command has with a file and another without.
        is_flag = any(_is_flag(words[here], parsers[name]) for name in words[here + 1 : here + 2]
                      if name in parsers)  # fmt: skip
        here += 1 + (0 if is_flag else taken)
    return list(words), []


def _is_flag(word: str, parser: argparse.ArgumentParser) -> bool:
    """Return whether a word is an option without values of this command."""
    action = parser._option_string_actions.get(word)
    return action is not None and action.nargs == 0


def _sorted(
    words: Sequence[str], sizes: Mapping[str, int | str | None]
) -> tuple[list[str], list[str]]:
    """Return the positional arguments, and the options with their values."""
    places: list[str] = []
    options: list[str] = []
    here = 0
    while here < len(words):
        if not words[here].startswith("-"):
            places.append(words[here])
            here += 1
            continue
        size = 1 + _taken(words, here, sizes)
        options += words[here : here + size]
        here += size
    return places, options


def _taken(
    words: Sequence[str],
    here: int,
    sizes: Mapping[str, int | str | None],
    commands: Container[str] = (),
) -> int:
    """Return how many words after the option at ``here`` are its values."""
    word = words[here]
    if not word.startswith("-") or "=" in word:
        return 0
    size = sizes.get(word, 0)
    if isinstance(size, int):
        return size
    if size is None:
        return 1
    count = 0
    for value in words[here + 1 :]:
        is_last = size == "?" and count == 1
        # A value of --cfg-options may be a file too, but then it is written KEY=FILE.
        is_own = "=" not in value and (value.endswith(FILES) or value in commands)
        if value.startswith("-") or is_last or is_own:
            break
        count += 1
    return count
