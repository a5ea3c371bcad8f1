"""A list, a number or a dict where a name belongs is one line that names the setting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from dq.detector.recipes.rules import rule_named
from dq.quant.ptq.settings import Repair
from dq.quant.recipes.presets import preset
from dq.quant.recipes.recipe import Recipe, Rule
from dq.quant.recipes.registration import register_target
from dq.quant.targets.registry import target_of
from dq.quant.targets.target import Target
from launcher.config import known_target, quant_settings


def target(**given: Any) -> Target:
    return Target(**{"name": "mine", "engine": "Mine", "source": "these tests", **given})


def of_config(key: str, given: Any) -> object:
    return quant_settings({key: given})


ASK: dict[str, Callable[[Any], object]] = {
    "quant.preset": preset,
    "quant.target": target_of,
    "observer": lambda given: Recipe(observer=given),
    "weight_range": lambda given: Recipe(weight_range=given),
    "learned": lambda given: Recipe(learned=given),
    "target ": lambda given: Recipe(target=given),
    "module": lambda given: Rule(module=given),
    "type": lambda given: Rule(type=given),
    "position": lambda given: Rule(position=given),
    "repairs": lambda given: Repair(steps=(given,)),
    "recipe": rule_named,
    "--target": lambda given: known_target(given, "--target"),
    "'mine': observer": lambda given: register_target(target(observer=given)),
    "fuses": lambda given: target(fuses=[given]),
    "splits": lambda given: target(splits=["silu", given]),
    **{
        f"{key} ": partial(of_config, key)
        for key in ("preset", "observer", "weight_range", "learned", "target")
    },
    "rules": lambda given: quant_settings({"rules": [{"module": given}]}),
}


@pytest.mark.parametrize("where", ASK)
@pytest.mark.parametrize("given", [["int8"], {"a": 1}, 3, ["silu", "mse"], {"set"}])
def test_it_is_refused_in_one_line(where: str, given: Any) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        ASK[where](given)
    message = str(raised.value)
    assert where.strip().split()[0].strip("'").split(".")[-1].strip("-:") in message
    assert str(given) in message or "silu" in message
    assert "\n" not in message
    assert "unhashable" not in message


def test_a_recipe_that_exists_stays_as_it_is() -> None:
    assert replace(preset("int8"), observer="mse").observer == "mse"
