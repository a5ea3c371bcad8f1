"""An environment of its own for each tool, because their requirements exclude each other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

INSTALLED = "installed.txt"


def python_of(folder: Path, requirements: Sequence[str], alone: Sequence[str] = ()) -> Path:
    """Return the Python of an environment, which is made if it is not there.

    Args:
        folder: Of the environment; without requirements this process's Python is used instead.
        requirements: As pip takes them.
        alone: Further packages, installed without what they require.

    Raises:
        RuntimeError: A requirement cannot be installed.
    """
    if not requirements:
        return Path(sys.executable)
    python, done = folder / "bin" / "python", folder / INSTALLED
    wanted = "\n".join((*requirements, *alone))
    if not (done.is_file() and done.read_text() == wanted):
        _run(sys.executable, "-m", "venv", folder)
        _run(python, "-m", "pip", "install", "-q", *requirements)
        if alone:
            _run(python, "-m", "pip", "install", "-q", "--no-deps", *alone)
        done.write_text(wanted)
    return python


def _run(*words: object) -> None:
    line = [str(word) for word in words]
    done = subprocess.run(line, check=False, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        errors = [line for line in said if line.startswith("ERROR")]
        raise RuntimeError(f"cannot be installed: {(errors or said)[-1]}")
