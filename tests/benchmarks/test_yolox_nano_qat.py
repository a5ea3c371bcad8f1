"""The benchmark of YOLOX-Nano's quantized training: its configs and its table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks.yolox_nano_ptq import split
from benchmarks.yolox_nano_qat import TRAININGS, config_text, table
from dq.detector.config.read import finish, read_config
from dq.detector.recipes.float_training import float_training
from dq.detector.recipes.numbers import numbers_of
from dq.detector.recipes.rules import RULES
from launcher.config import quant_settings


@pytest.mark.parametrize("training_name", TRAININGS)
def test_the_rows_recipe_trains_the_asked_epochs(training_name: str, tmp_path: Path) -> None:
    arguments = argparse.Namespace(images=tmp_path, epochs=6)
    path = tmp_path / "config.py"
    path.write_text(
        config_text(arguments, training_name, [tmp_path / "a.json", tmp_path / "b.json"])
    )
    config = finish(read_config(path))
    recipe = quant_settings(config.quant).training_recipe
    assert recipe is not None
    training = float_training(config, steps_per_epoch=8, images_per_step=8)
    found = numbers_of(
        recipe.name, RULES[recipe.name], training, folded_norms=True, passes=recipe.passes
    )
    assert (found.length, found.steps) == (6, 48)
    # YOLOX's rate is for 64 images a step.
    assert found.rate == pytest.approx({"SGD": 1.25e-4, "AdamW": 1e-5}[training_name])


def test_the_table_has_start_result_control_and_means() -> None:
    first = {"calibrated": 0.294, "qat": 0.301, "control": 0.323, "qat - control": "-2.20 (...)"}
    second = {"calibrated": 0.4, "qat": 0.5, "control": 0.5}
    rows = {("SGD", "split 0"): first, ("SGD", "split 1"): second, ("AdamW", "split 0"): second}
    made = table(rows).splitlines()[2:]
    assert made == [
        "| SGD, split 0 | 29.4 | 30.1 | 32.3 |  | -2.20 (...) |",
        "| SGD, split 1 | 40.0 | 50.0 | 50.0 |  |  |",
        "| SGD, mean | 34.7 | 40.0 | 41.1 | +5.35 | -1.10 |",
        "| AdamW, split 0 | 40.0 | 50.0 | 50.0 |  |  |",
    ]


def test_a_seed_shuffles_the_halves_and_together_they_are_all_images(tmp_path: Path) -> None:
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(9)],
        "annotations": [{"id": n, "image_id": n % 9} for n in range(20)],
    }
    annotations = tmp_path / "all.json"
    annotations.write_text(json.dumps(content))
    found = []
    for seed in (0, 1, 2):
        halves = split(annotations, tmp_path / str(seed), seed)
        ids = [[i["id"] for i in json.loads(h.read_text())["images"]] for h in halves]
        assert sorted([*ids[0], *ids[1]]) == list(range(9))
        found.append(ids)
    assert found[0] == [[0, 2, 4, 6, 8], [1, 3, 5, 7]]
    assert found[1] != found[0]
    assert found[2] != found[1]
