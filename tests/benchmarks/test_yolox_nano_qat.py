"""The benchmark of YOLOX-Nano's quantized training: its configs and its table."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from benchmarks.yolox_nano_qat import ROWS, config_text, table
from dq.detector.config.read import finish, read_config
from dq.detector.recipes.float_training import float_training
from dq.detector.recipes.numbers import numbers_of
from dq.detector.recipes.rules import RULES
from launcher.config import quant_settings


@pytest.mark.parametrize("row", ROWS)
def test_the_rows_recipe_trains_the_asked_epochs(row: str, tmp_path: Path) -> None:
    arguments = argparse.Namespace(images=tmp_path, epochs=6)
    path = tmp_path / "config.py"
    path.write_text(config_text(arguments, row, [tmp_path / "a.json", tmp_path / "b.json"]))
    config = finish(read_config(path))
    recipe = quant_settings(config.quant).training_recipe
    assert recipe is not None
    training = float_training(config, steps_per_epoch=8, images_per_step=8)
    found = numbers_of(
        recipe.name, RULES[recipe.name], training, folded_norms=True, passes=recipe.passes
    )
    assert (found.length, found.steps) == (6, 48)
    # YOLOX's rate is for 64 images a step.
    assert found.rate == pytest.approx({"SGD": 1.25e-4, "AdamW": 1e-5}[row])


def test_the_table_has_start_result_and_control() -> None:
    made = table({"SGD": {"start": 0.294, "qat": 0.301, "control": 0.323}})
    assert made.splitlines()[-1] == "| SGD | 29.4 | 30.1 | 32.3 |"
