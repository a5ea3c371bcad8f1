"""The files of the set-up, which run as scripts in their own folder."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "setup"
FILES = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """All files of the set-up by name, imported anew, and forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield {name: importlib.import_module(name) for name in FILES}
        for name in FILES:
            del sys.modules[name]
