"""Paths of pictures: equal ones get a number, all others stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from dq.tracking.pictures.distinct_paths import distinct_paths


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([], []),
        (["a.jpg", "b.jpg", "x/a.jpg"], ["a.jpg", "b.jpg", "x/a.jpg"]),
        (["a.jpg"] * 3, ["a.jpg", "a_2.jpg", "a_3.jpg"]),
        # A number never leads to the name of another image, wherever that one is.
        (["a.jpg", "a.jpg", "a_2.jpg"], ["a.jpg", "a_3.jpg", "a_2.jpg"]),
        (["a_2.jpg", "a.jpg", "a.jpg"], ["a_2.jpg", "a.jpg", "a_3.jpg"]),
        (["x/a.b.jpg", "x/a.b.jpg"], ["x/a.b.jpg", "x/a.b_2.jpg"]),
    ],
)
def test_only_equal_paths_get_a_number(given: list[str], wanted: list[str]) -> None:
    assert [str(path) for path in distinct_paths([Path(p) for p in given])] == wanted
