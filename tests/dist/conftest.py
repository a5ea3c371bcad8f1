"""Fixtures for tests of ranks."""

import pytest

from tests.processes import ports


@pytest.fixture
def free_port() -> int:
    return ports.free_port()
