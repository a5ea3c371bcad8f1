"""A value of a config is compared with the annotation of the field that it goes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from mmcv import ConfigDict

from dq.field_types import check_fields, check_value, fits, words_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """A section in a section."""

    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """A section whose second field has the name of a builtin type."""

    number: float = 0.0
    type: str | None = None
    inner: Inner | None = None
    kind: str = field(default="a", metadata={"known": ("a", "b")})
    count: int = field(default=1, metadata={"least": 1})
    share: float = field(default=0.5, metadata={"above": 0.0})
    names: tuple[str, ...] = field(default=(), metadata={"one": True, "words": "a list of names"})


@pytest.mark.parametrize(
    ("annotation", "right", "wrong", "words"),
    [
        (bool, [True, False], [0, 1, "True", None], "True or False"),
        (int, [0, -3, np.int64(2)], [True, 1.0, "1", None, [1]], "a whole number"),
        (float, [0, 1.5, np.float32(2)], [False, "1.5", None, {}], "a number"),
        (str, ["", "a"], [1, None, ["a"], b"a"], "a text"),
        (int | None, [None, 1], ["", False, []], "a whole number or None"),
        (bool | None, [None, True], [0, ""], "True, False or None"),
        (tuple[str, ...], [[], (), ["a"], ("a",)], ["a", None, [1], {"a": 1}], "a list of texts"),
        (tuple[Inner, ...], [[{}], [ConfigDict(number=1)]], [[1], {}], "a list of dicts"),
        (tuple[Any, ...] | None, [None, [5, "a"]], ["a", 5, {}], "a list or None"),
        (
            tuple[Inner | tuple[Any, ...], ...],
            [[], [{}, [{}]]],
            [["a"], {}],
            "a list of dicts and lists",
        ),
        (Inner, [{}, ConfigDict(number="x")], [None, [], True], "a dict"),
        (Mapping[str, Any], [{}, {"a": 1}], [{1: 1}, [("a", 1)]], "a dict"),
        (Mapping, [{}, {1: 1}], [None, "a"], "a dict"),
        (float | Mapping[str, int], [0, {"a": 1}], [True, {"a": "x"}], "a number or a dict"),
        (Any, [None, 1, "a"], [], ""),
    ],
)
def test_annotations(annotation: Any, right: list[Any], wrong: list[Any], words: str) -> None:
    assert [value for value in right if not fits(value, annotation)] == []
    assert [value for value in wrong if fits(value, annotation)] == []
    assert not words or words_of(annotation) == words


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"number": "1"}, "part.number is '1'; use a number"),
        ({"type": 5}, "part.type is 5; use a text or None"),
        ({"inner": 5}, "part.inner must be a dict or None, not 5"),
        ({"kind": 5}, "part.kind 5 does not exist; known are a, b"),
        ({"count": 1.5}, "part.count is 1.5; use a whole number from 1"),
        ({"share": "x"}, "part.share is 'x'; use a number above 0"),
        ({"names": [5]}, r"part.names must be a list of names, not \[5\]"),
    ],
)
def test_a_wrong_type_is_named_with_what_is_allowed(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_fields(given, Outer, "part")


def test_right_types_pass() -> None:
    check_fields({"number": 1, "type": None, "inner": {}, "names": "a"}, Outer, "part")
    check_value("key", 3, int, {"least": 5})  # Limits are for the message only.
