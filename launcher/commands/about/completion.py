"""``launcher completion``: a script that lets the shell complete commands, flags and files."""

from __future__ import annotations

import argparse

HELP = "print a script for the completion of commands, flags and files in bash, zsh or tcsh"
SHELLS = ("bash", "zsh", "tcsh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "shell",
        choices=SHELLS,
        help="bash: add `source <(launcher completion bash)` to ~/.bashrc; zsh: write the script"
        " into a folder of $fpath as _launcher; tcsh: write it into a file and source that",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the script and return 0."""
    import shtab

    from launcher.cli import build_parsers

    parser, children = build_parsers()
    for child in children.values():
        for action in child._actions:
            kind = _files(action)
            if kind is not None:
                action.complete = getattr(shtab, kind)  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell=arguments.shell))
    return 0


def _files(action: argparse.Action) -> str | None:
    """Return shtab's name for the kind of file that an argument takes, judged by its metavar.

    None if the argument takes no file.
    """
    shown = str(action.metavar or "")
    if action.choices is not None:
        return None
    if "DIR" in shown:
        return "DIRECTORY"
    return "FILE" if any(word in shown for word in ("FILE", "CONFIG", "MODEL")) else None
