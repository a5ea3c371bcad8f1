"""Names that nobody knows: a message says the nearest that is known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# So alike must two names be; 1 is equal.
CUTOFF = 0.5
# A list of what there is stays readable up to so many names.
_SHOWN = 12


def hint(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean X?`` for the nearest known name, else what there is."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=CUTOFF)
    if near:
        return f"did you mean {near[0]}?"
    return f"known are {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `hint` as the end of a sentence, after a semicolon."""
    return f"; {hint(name, known)}"


def check_keys(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise ValueError for the first key that is not known.

    Args:
        given: Keys of a section.
        known: All that it may have.
        where: The section, such as ``quant.schedule``.
    """
    names = set(known)
    for key in given:
        if key not in names:
            raise ValueError(f"{where}.{key} is not a setting; {hint(key, names)}")
