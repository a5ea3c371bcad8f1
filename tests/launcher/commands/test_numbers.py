"""A number that is out of range is refused before anything starts."""

from __future__ import annotations

import pytest

from tests.launcher.conftest import Launch
from tests.launcher.failures.test_errors import only_error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("analyze", "c.py", "--checkpoint", "f.pth", "--rows", "-5"), "--rows is -5; give"),
        (("compare", "runs", "--details", "-1"), "--details is -1; give 0 or more"),
        (("coverage", "--jobs", "0"), "--jobs is 0; give a whole number of at least 1"),
    ],
)
def test_it_is_named(launch: Launch, words: tuple[str, ...], said: str) -> None:
    assert said in only_error(launch(*words))
