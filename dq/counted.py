"""A number with its words: ``1 image is``, ``2 images are``."""

from __future__ import annotations

import re

# ``[s]`` is written for several only; ``[is|are]`` has the form for one before the bar.
_FORMS = re.compile(r"\[([^\[\]|]*\|)?([^\[\]|]*)\]")


def counted(number: int, words: str) -> str:
    """Return a number and the words in the form that goes with it.

    Args:
        number: How many there are.
        words: Such as ``image[s] [is|are] left out`` or ``box[es]``. Text in brackets is written
            for several only; with a bar, the part before the bar is written for one. Names from
            outside do not belong here, because they may contain brackets.
    """
    return f"{number} {form(number, words)}"


def form(number: int, words: str) -> str:
    """Return the words of `counted` without the number."""
    return _FORMS.sub(lambda m: (m[1] or "").rstrip("|") if number == 1 else m[2], words)
