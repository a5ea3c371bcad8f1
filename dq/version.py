"""The version of this package, which is said in ``pyproject.toml`` alone."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

NAME = "dq-launcher"


def version() -> str:
    """Return the version: of the checkout that runs, else of the installed package."""
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    try:
        content = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        if content["name"] == NAME:
            return str(content["version"])
    except (OSError, KeyError, ValueError):
        pass
    try:
        return importlib.metadata.version(NAME)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
