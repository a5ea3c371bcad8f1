"""Whether a dotted key of a config's own sections exists."""

from __future__ import annotations

import difflib
import re

from launcher.sections import SECTIONS


def check_key(key: str) -> None:
    """Raise LookupError for a dotted key of one of our sections that is not there.

    Args:
        key: Such as ``quant.rules[0].weight.bits``; a key of another section is not checked.
    """
    plain = re.sub(r"\[\d+\]|\.\d+(?=\.|$)", "", key)
    section, _, name = plain.rpartition(".")
    is_ours = plain.partition(".")[0] in SECTIONS
    if not is_ours or plain in SECTIONS or plain.startswith("quant.training."):
        return
    known = SECTIONS.get(section, {})
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise LookupError(f"{key} is not a setting" + (f"; {near[0]} is" if near else ""))
