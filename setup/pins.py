"""The versions that `constraints.txt` names."""

from __future__ import annotations

from pathlib import Path

from steps import SetupError

CONSTRAINTS = Path(__file__).resolve().parent / "constraints.txt"


def pinned(name: str) -> str:
    """Return the ``name==version`` line of the constraints file."""
    for line in CONSTRAINTS.read_text().splitlines():
        if line.split("==")[0] == name:
            return line.strip()
    raise SetupError(f"{CONSTRAINTS} does not pin {name}; add a line '{name}==VERSION'")
