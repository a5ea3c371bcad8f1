"""A copy of the code for a job, so that later edits do not affect it."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

PACKAGES = ("launcher", "dq", "slurm", "configs")
# Not copied: what Python and version control create again. Code may read any other file.
LEFT_OUT = ("__pycache__", ".git", ".hg", ".svn", ".venv", ".mypy_cache", ".ruff_cache",
            ".pytest_cache", ".ipynb_checkpoints")  # fmt: skip
COMPILED = (".pyc", ".pyo")
LIMIT_BYTES = 50 * 2**20


def copy_code(target: Path, *, source: Path | None = None, more: tuple[Path, ...] = ()) -> None:
    """Copy the project's packages into ``target``, with all files next to their modules.

    Args:
        target: Must not exist yet.
        source: The folder with the packages; by default the one of this module.
        more: The user's own modules or packages that configs import.

    Raises:
        ValueError: One of ``more`` is missing, or the size is too large for code.
    """
    source = source or Path(__file__).resolve().parents[2]
    paths = [source / name for name in PACKAGES if (source / name).is_dir()]
    for path in more:
        if not path.exists():
            raise ValueError(f"--include {path} does not exist")
    size = 0
    files: list[tuple[Path, Path]] = []
    for top in (*paths, *(path.absolute() for path in more)):
        for path in _files(top):
            try:
                size += path.stat().st_size
            except FileNotFoundError:
                continue  # A file that an editor has removed at this moment.
            if size > LIMIT_BYTES:
                raise ValueError(
                    f"the snapshot of {top} would pass {LIMIT_BYTES >> 20} MiB at {path}; give"
                    " --include a folder that has only code and the files that it reads, no data"
                )
            files.append((path, target / path.relative_to(top.parent)))
    for path, copy in files:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # Likewise.
            shutil.copy(path, copy)  # Scripts stay executable.


def _files(top: Path) -> list[Path]:
    """Return all files of a package, also those in linked folders."""
    if top.is_file():
        return [top]
    found: list[Path] = []
    seen: set[Path] = set()
    for name, folders, files in os.walk(top, followlinks=True):
        here = Path(name).resolve()
        folders[:] = [] if here in seen else sorted(f for f in folders if f not in LEFT_OUT)
        if here in seen:  # A link to a parent folder.
            continue
        seen.add(here)
        paths = (Path(name, file) for file in sorted(files))
        found += [p for p in paths if p.suffix not in COMPILED and p.is_file()]
    return found
