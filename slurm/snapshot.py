"""A copy of the code that a job runs, so that editing it afterwards changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

PACKAGES = ("launcher", "dq", "slurm", "configs")
KEPT = (".py", ".cpp", ".toml", ".json", ".txt", ".md", ".yaml", ".yml")
LIMIT_BYTES = 50 * 2**20


def copy_code(target: Path, *, source: Path | None = None, more: tuple[Path, ...] = ()) -> None:
    """Copy the project's packages into ``target``.

    Args:
        target: Does not exist yet.
        source: The folder they lie in; by default the one this module is run from.
        more: The user's own modules or packages that configs import.

    Raises:
        ValueError: One of ``more`` is missing, or all together are too large to be code.
    """
    source = source or Path(__file__).resolve().parent.parent
    paths = [source / name for name in PACKAGES if (source / name).is_dir()]
    for path in more:
        if not path.exists():
            raise ValueError(f"--include {path} does not exist")
    size = 0
    files: list[tuple[Path, Path]] = []
    for top in (*paths, *(path.absolute() for path in more)):
        for path in _files(top):
            size += path.stat().st_size
            if size > LIMIT_BYTES:
                raise ValueError(
                    f"the snapshot of {top} would pass {LIMIT_BYTES >> 20} MiB at {path}; give"
                    " --include the folder with the code alone"
                )
            files.append((path, target / path.relative_to(top.parent)))
    for path, copy in files:
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _files(top: Path) -> list[Path]:
    if top.is_file():
        return [top]
    return [
        path
        for path in sorted(top.rglob("*"))
        if path.suffix in KEPT and "__pycache__" not in path.parts and path.is_file()
    ]
