"""The words of a command line, put into the order in which argparse reads them.

argparse wants the command first, and an option that takes several words takes all that follow. Here
``launcher --seed 3 train --cfg-options a=1 CONFIG`` is what it looks like.
"""

from __future__ import annotations

import argparse
from collections.abc import Container, Mapping, Sequence

# What a word that is a file, and no value of an option before it, ends with.
FILES = (".py", ".json", ".yml", ".yaml", ".onnx")
CONFIGS = FILES[:-1]
# Its words after the command are another command line.
NESTING = "submit"


def ordered(words: Sequence[str], parsers: Mapping[str, argparse.ArgumentParser]) -> list[str]:
    """Return the words with the command first, then what has no option's name, then options.

    Args:
        words: As the user gave them.
        parsers: Of each command.

    Returns:
        The words; where none of them is a command and one is a config, ``auto`` comes first.
    """
    sizes = _sizes(parsers)
    before, rest = _split_at_command(words, parsers, sizes)
    if rest and rest[0] == NESTING:
        return [NESTING, *before, *rest[1:]]
    command, others = rest[:1], [*before, *rest[1:]]
    places, options = _sorted(others, sizes)
    if not command and any(word.endswith(CONFIGS) for word in places):
        command = ["auto"]
    if any(_name(word) not in sizes for word in options if word.startswith("--")):
        return [*command, *others]  # Mistyped, or of a command in the command.
    return [*command, *places, *options]


def _name(word: str) -> str:
    return word.partition("=")[0]


def _sizes(parsers: Mapping[str, argparse.ArgumentParser]) -> dict[str, int | str | None]:
    """Return how many words each option takes: a number, ``?`` or ``+``."""
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
    """Return what stands before the command, and it with all the rest."""
    here = 0
    while here < len(words):
        if words[here] in parsers:
            return list(words[:here]), list(words[here:])
        here += 1 + _taken(words, here, sizes, parsers)
    return list(words), []


def _sorted(
    words: Sequence[str], sizes: Mapping[str, int | str | None]
) -> tuple[list[str], list[str]]:
    """Return the words that belong to no option, and the options with their words."""
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
    """Return how many words after the one at ``here`` are its values."""
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
        # A value of --cfg-options may be a file, but then a key stands before it.
        is_own = "=" not in value and (value.endswith(FILES) or value in commands)
        if value.startswith("-") or is_last or is_own:
            break
        count += 1
    return count
