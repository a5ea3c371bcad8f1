"""Fixtures of all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder with real data and weights, or skip."""
    folder = Path(os.environ.get("DQ_SHARED") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist (set DQ_SHARED)")
    return folder
