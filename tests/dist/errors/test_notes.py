from __future__ import annotations

import copy
import pickle

import pytest

from dq.dist.errors.foreseen import is_expected
from dq.dist.errors.notes import Notes, note, notes_on


@pytest.mark.parametrize("error", [ValueError("a"), OSError(2, "no"), KeyboardInterrupt()])
def test_facts_are_added_to_those_noted_before(error: BaseException) -> None:
    assert notes_on(error) == Notes()
    note(error, exit_code=2)
    note(error, reported=True)
    assert notes_on(error) == Notes(exit_code=2, reported=True)
    with pytest.raises(TypeError):
        note(error, told=True)


@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_a_copy_of_an_error_has_its_notes(again) -> None:  # type: ignore[no-untyped-def]
    error = ValueError("a")
    note(error, is_expected=True, reported_elsewhere=True)
    copied = again(error)
    assert notes_on(copied) == notes_on(error)
    note(error, is_expected=False)
    assert is_expected(copied)
    assert not is_expected(error)
