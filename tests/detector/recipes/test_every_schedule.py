"""A recipe's numbers fit the training of every config that mmdet ships."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from mmcv import Config

from dq.detector.config.read import finish, training_config
from dq.detector.recipes.checks import doubts
from dq.detector.recipes.float_training import float_training
from dq.detector.recipes.numbers import numbers_of
from dq.detector.recipes.rules import RULES
from dq.detector.survey.families import configs_folder

SECTIONS = ("optimizer", "optimizer_config", "lr_config", "runner", "total_epochs", "evaluation",
            "custom_hooks", "momentum_config", "checkpoint_config", "workflow", "fp16")  # fmt: skip


def trainings() -> dict[str, tuple[Path, Config]]:
    """Return a config of each way to train among mmdet's, by its sections."""
    found: dict[str, tuple[Path, Config]] = {}
    for path in sorted(configs_folder().glob("*/*.py")):
        if path.parent.name == "_base_":
            continue
        config = Config.fromfile(str(path), import_custom_modules=False)
        parts = {name: config.get(name, "absent") for name in SECTIONS}
        found.setdefault(json.dumps(parts, sort_keys=True, default=str), (path, config))
    return found


@pytest.fixture(scope="module")
def ways() -> dict[str, tuple[Path, Config]]:
    return trainings()


@pytest.mark.slow
def test_there_are_many_ways_to_train(ways: dict[str, Any]) -> None:
    assert len(ways) > 50


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_the_numbers_of_a_recipe_fit(name: str, ways: dict[str, tuple[Path, Config]]) -> None:
    failed = {}
    for path, given in ways.values():
        try:
            config = finish(copy.deepcopy(given))
            training = float_training(config, steps_per_epoch=7330, images_per_step=16)
            numbers = numbers_of(name, RULES[name], training, folded_norms=False)
            changed = training_config(config, numbers.overrides(config))
            assert changed.optimizer.lr == numbers.rate
            length = changed.runner.get("max_epochs") or changed.runner.get("max_iters")
            assert length == numbers.length
            assert changed.evaluation.interval <= numbers.length
            clip = changed.optimizer_config.get("grad_clip")
            assert changed.optimizer_config.get("type") or clip["max_norm"] > 0
            assert "_delete_" not in json.dumps(changed._cfg_dict, default=str)
            assert isinstance(list(doubts(changed, config, RULES[name], 7330, name)), list)
        except Exception as error:
            failed[path.name] = f"{type(error).__name__}: {error}"
    assert not failed
