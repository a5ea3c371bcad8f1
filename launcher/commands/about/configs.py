"""``launcher configs``: the configs that ship, with their names."""

from __future__ import annotations

import argparse

HELP = "list the configs that ship with the launcher; each can be given by its name"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no arguments."""


def run(arguments: argparse.Namespace) -> int:
    """Print name and first line of each config, and their folder; return 0."""
    from dq import shipped

    found = shipped.shipped()
    width = max(map(len, found))
    for name, path in found.items():
        print(f"{name:<{width}}  {shipped.first_line(path)}")
    print(f"in {shipped.configs_folder()}; the folder's name may be left out where one is meant")
    return 0
