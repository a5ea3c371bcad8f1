"""An ``lr_config`` from whose values no rate can be computed is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from dq.detector.config.read import finish
from dq.detector.config.training_values.schedule_values import _TYPES, KNOWN, check_schedule
from dq.detector.recipes.float_training import rates
from dq.field_types import fits
from tests.detector.minimal import minimal

VALUES: tuple[Any, ...] = ("x", 5, 0.5, True, None, [5], ["x"], [0.5, 0.1], {"a": 0.5}, {"a": "x"})


@pytest.mark.parametrize("name", _TYPES)
@pytest.mark.parametrize("policy", KNOWN)
def test_every_value_of_a_known_policy_is_checked(policy: str, name: str) -> None:
    for value in VALUES:
        schedule = {"policy": policy, name: value}
        if fits(value, _TYPES[name]):
            check_schedule(schedule)
            rates(0.1, schedule)
            continue
        for read in (lambda given: rates(0.1, given), lambda g: finish(minimal(lr_config=g))):
            with pytest.raises(ValueError, match=rf"^lr_config\.{name} (is|must be) ") as caught:
                read(schedule)
            assert repr(value) in str(caught.value)


def test_a_policy_of_the_users_own_is_left_alone() -> None:
    check_schedule({"policy": "Mine", "gamma": "x"})
    assert rates(0.1, {"policy": "Mine", "gamma": "x"}) == (0.1, 0.1)


def test_a_ratio_of_none_is_as_if_it_were_left_out() -> None:
    schedule = {"policy": "CosineAnnealing", "min_lr": 0.001, "min_lr_ratio": None}
    assert rates(0.1, schedule) == (0.1, 0.001)
