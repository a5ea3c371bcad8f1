"""Messages for unknown names: they suggest the nearest known name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import TypeGuard

# Names must be at least this similar; 1 is equal.
CUTOFF = 0.5
# A list of known names stays readable up to this length.
_SHOWN = 12


def is_one_of(name: object, known: Collection[str]) -> TypeGuard[str]:
    """Return whether this is one of the names; a list or dict that a user gave instead is none."""
    return isinstance(name, str) and name in known


def hint(name: object, known: Iterable[str]) -> str:
    """Return ``did you mean X?`` for the nearest known name, else the known names.

    Args:
        name: The unknown name. A user may have given something other than a string.
        known: The known names.
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=CUTOFF)
    if near:
        return f"did you mean {near[0]}?"
    return f"known are {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"


def did_you_mean(name: str, known: Iterable[str], where: str = "") -> str:
    """Return `hint` as the end of a sentence, after a semicolon.

    Args:
        name: The unknown name.
        known: The known names.
        where: Where all of them are listed, as a sentence of its own without a full stop.
    """
    near = hint(name, known)
    if not where:
        return f"; {near}"
    return f"; {near}{' ' if near.endswith('?') else '; '}{where}"


def check_keys(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise ValueError for the first key that is not known.

    Args:
        given: Keys of a section.
        known: All keys that the section may have.
        where: The section, such as ``quant.schedule``.
    """
    names = set(known)
    for key in given:
        if key not in names:
            raise ValueError(f"{where}.{key} is not a setting; {hint(key, names)}")
