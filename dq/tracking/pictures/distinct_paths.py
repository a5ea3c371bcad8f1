"""A path of its own for each picture, also where images of several folders have the same name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from pathlib import Path


def distinct_paths(paths: Sequence[Path]) -> list[Path]:
    """Return the paths in their order, with a number in the name of each that came before.

    The first of several equal ones stays, so that paths that differ are not changed at all.
    """
    taken, seen = set(paths), set[Path]()
    numbers: defaultdict[Path, count[int]] = defaultdict(lambda: count(2))
    found = []
    for path in paths:
        own = path
        while own in seen or (own != path and own in taken):
            own = path.with_name(f"{path.stem}_{next(numbers[path])}{path.suffix}")
        seen.add(own)
        found.append(own)
    return found
