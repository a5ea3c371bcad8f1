"""Record what this process writes into the checkout, so that a test that leaves something fails."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Caches of Python and of tools, and what git keeps.
_CACHES = {"__pycache__", ".venv", ".git", ".pytest_cache", ".hypothesis", ".mypy_cache"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Written:
    """The paths below a folder that this process has created or opened for writing.

    Python reports each such call to audit hooks, also those of libraries, and names the process's
    own calls only: what another process writes there at the same time is not seen.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = f"{root}{os.sep}"
        self._paths: set[str] = set()
        sys.addaudithook(self._hear)

    def left(self) -> list[str]:
        """Return those that are still there, and forget all."""
        found = sorted(path for path in self._paths if os.path.lexists(path))
        self._paths.clear()
        return found

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if event not in ("os.mkdir", "open"):
            return
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITES):
            return
        name = os.path.abspath(os.fsdecode(path))
        if name.startswith(self._root) and not _CACHES & set(name.split(os.sep)):
            self._paths.add(name)
