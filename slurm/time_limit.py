"""Convert Slurm's notation of a duration to minutes."""

from __future__ import annotations

import math
import re

_FORMS = re.compile(
    r"(?:(?P<days>\d+)-(?P<dh>\d+)(?::(?P<dm>\d+)(?::(?P<ds>\d+))?)?"
    r"|(?P<h>\d+):(?P<m>\d+):(?P<s>\d+)|(?P<minutes>\d+)(?::(?P<seconds>\d+))?)"
)


def minutes_of(text: str | int) -> int:
    """Return a time limit in whole minutes, rounded up.

    Args:
        text: Like sbatch's ``--time``: ``90``, ``90:00``, ``1:30:00``, ``1-12``, ``1-12:30:00``.

    Raises:
        ValueError: It is in none of these notations, or is zero.
    """
    found = _FORMS.fullmatch(str(text).strip())
    if found is None:
        raise ValueError(
            f"time {text!r} is not a duration; write minutes (90), H:M:S (1:30:00) or D-H (1-12)"
        )
    part = {name: int(value or 0) for name, value in found.groupdict().items()}
    hours = 24 * part["days"] + part["dh"] + part["h"]
    minutes = 60 * hours + part["dm"] + part["m"] + part["minutes"]
    total = minutes + math.ceil((part["ds"] + part["s"] + part["seconds"]) / 60)
    if total < 1:
        raise ValueError(f"time {text!r} is no time at all; give at least a minute")
    return total
