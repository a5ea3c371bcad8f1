"""Whole numbers in environment variables."""

from __future__ import annotations

import re
from collections.abc import Mapping


def number_in(environ: Mapping[str, str], name: str, default: int = 0) -> int:
    """Return the number in a variable, or the default if the variable is not there.

    Raises:
        ValueError: It is not a whole number of at least 0.
    """
    text = environ.get(name, str(default))
    if not re.fullmatch(r"[0-9]+", text.strip()):
        raise ValueError(f"{name} must be a whole number of at least 0, but is {text!r}")
    return int(text)
