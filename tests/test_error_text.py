"""What an error says in a message of ours: one line, also if the error itself says nothing."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dq.error_text import ROOT, error_text, short_path, typed_error_text
from tests.dist.errors.test_foreseen import caught


def silent() -> None:
    # Not an assert statement, because pytest gives those a text.
    raise AssertionError


def built() -> None:
    """Fail as mmcv's registries do: each puts its name before the text of the error inside."""
    try:
        try:
            silent()
        except AssertionError as error:
            raise AssertionError(f"MultiScaleFlipAug: {error}") from None
    except AssertionError as error:
        raise AssertionError(f"VOCFolderDataset: {error}")  # noqa: B904


def raised(error: BaseException) -> Callable[[], Any]:
    def action() -> None:
        raise error

    return action


def test_a_text_is_one_line() -> None:
    assert error_text(ValueError("two\n  lines")) == "two lines"
    assert typed_error_text(ValueError("two\n  lines")) == "ValueError: two lines"


def test_an_error_without_text_names_the_statement() -> None:
    found = error_text(caught(silent))
    assert found.startswith("AssertionError at tests/test_error_text.py:")
    assert found.endswith("(raise AssertionError)")
    assert typed_error_text(caught(silent)) == found


def test_an_error_that_lost_its_text_on_the_way_names_the_statement() -> None:
    found = error_text(caught(built))
    assert found.startswith("VOCFolderDataset: MultiScaleFlipAug: AssertionError at tests/test_err")
    assert found.endswith("(raise AssertionError)")


@pytest.mark.parametrize("error", [KeyError(), RuntimeError(""), ValueError(" \n"), OSError()])
def test_no_error_is_an_empty_text(error: BaseException) -> None:
    assert error_text(error) == type(error).__name__
    assert error_text(caught(raised(error))).startswith(f"{type(error).__name__} at tests/")


def test_a_text_that_ends_with_a_colon_stays_if_no_error_was_silent() -> None:
    assert error_text(caught(raised(ValueError("it says:")))) == "it says:"


def test_errors_that_follow_each_other_in_a_circle_end() -> None:
    first, second = ValueError("a:"), ValueError("b:")
    first.__cause__, second.__cause__ = second, first
    assert error_text(first) == "a:"


def test_a_path_is_short_for_a_file_of_a_library() -> None:
    assert short_path(json.__file__) == "json/__init__.py"
    assert short_path(str(ROOT / "dq" / "names.py")) == "dq/names.py"
    assert short_path("/elsewhere/x.py") == "/elsewhere/x.py"


def joined_errors(tree: ast.AST) -> list[int]:
    """Return the lines in which the text of an error is put on one line by hand."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "split"
        and not node.args
        and ast.unparse(node.func.value) in ("str(error)", "f'{type(error).__name__}: {error}'")
    ]


def test_the_rule_sees_a_text_joined_by_hand() -> None:
    assert joined_errors(ast.parse("' '.join(str(error).split())")) == [1]
    assert joined_errors(ast.parse("' '.join(f'{type(error).__name__}: {error}'.split())")) == [1]
    assert not joined_errors(ast.parse("' '.join(str(name).split())"))


@pytest.mark.parametrize("place", ["dq", "launcher", "slurm"])
def test_errors_are_put_on_one_line_in_one_way(place: str) -> None:
    own = Path("dq/error_text.py")
    for path in sorted((ROOT / place).rglob("*.py")):
        if path.relative_to(ROOT) != own:
            found = joined_errors(ast.parse(path.read_text()))
            assert not found, f"{path}:{found} joins an error's text; use dq.error_text"
