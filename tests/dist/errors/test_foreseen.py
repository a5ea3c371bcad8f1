"""Our own errors are told apart from a library's, and the place of an error is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from torch._utils import ExceptionWrapper

from dq.detector.training.checkpoint_plan import CheckpointPlan
from dq.dist.errors.foreseen import error_location, error_message, error_summary, is_expected
from dq.dist.rendezvous.environment import Environment
from dq.tracking.record.settings import Tracking


def caught(action: Callable[[], Any]) -> BaseException:
    try:
        action()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def ours() -> None:
    Environment(rank=3)


def test_our_own_error_is_expected() -> None:
    for action in (ours, lambda: CheckpointPlan(steps=-1)):
        assert is_expected(caught(action))


@pytest.mark.parametrize(
    "action",
    [
        lambda: json.loads("{"),  # ValueError of a library
        lambda: int("x"),  # of Python itself, in a file that is not ours
        lambda: Tracking(init_s="x"),  # type: ignore[arg-type]  # TypeError in a file of ours
        lambda: [].pop(),
    ],
)
def test_other_errors_are_unexpected(action: Callable[[], Any]) -> None:
    assert not is_expected(caught(action))


def test_an_error_that_is_only_reported_is_expected() -> None:
    """It has no traceback: it was created for its message and never raised."""
    assert is_expected(ValueError("a rank is missing"))
    assert is_expected(RuntimeError("a rank is missing"))
    assert not is_expected(KeyError("a rank is missing"))


def test_location_is_short_for_a_file_of_a_library() -> None:
    assert error_location(caught(lambda: json.loads("{"))).startswith("json/decoder.py:")
    assert error_location(caught(ours)).startswith("dq/dist/rendezvous/environment.py:")


def as_loader_process(action: Callable[[], Any]) -> BaseException:
    """Return the exception that torch's loader raises if an action failed in a loader process."""
    try:
        action()
    except Exception:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    return caught(wrapped.reraise)


def test_error_of_a_loader_process() -> None:
    error = as_loader_process(lambda: json.loads("{"))
    assert not is_expected(error)
    assert "Traceback" in str(error)
    text = error_summary(error)
    assert text.startswith("JSONDecodeError: Expecting property name")
    assert "raised at json/decoder.py:" in text
    assert text.endswith("in a loader process")
    assert "\n" not in text
    mine = as_loader_process(ours)
    assert is_expected(mine)
    assert error_message(mine).startswith("rank does not fit world size")
