"""When a file of a record was last written, also of one that others may remove."""

from __future__ import annotations

from pathlib import Path


def written_at(path: Path) -> float:
    """Return when a file was last written, in seconds since 1970; 0 if there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
