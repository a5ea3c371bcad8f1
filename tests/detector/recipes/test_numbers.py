"""What the recipes come to for float trainings of many kinds."""

from __future__ import annotations

from typing import Any

import pytest
from mmcv import Config

from dq.detector.config.read import finish, training_config
from dq.detector.recipes.checks import doubts
from dq.detector.recipes.float_training import FloatTraining, float_training, rates
from dq.detector.recipes.numbers import Numbers, numbers_of
from dq.detector.recipes.rules import RULES, merged, rule_named, rule_of_width

COSINE = {"policy": "CosineAnnealing", "min_lr": 0}
STEP = {"policy": "step", "step": [8, 11]}
YOLOX = {"policy": "YOLOX", "min_lr_ratio": 0.05, "num_last_epochs": 15}


def of(optimizer: str, rate: float, schedule: Any, runner: dict[str, Any], **more: Any) -> Config:
    return Config(
        {
            "optimizer": {"type": optimizer, "lr": rate},
            "lr_config": schedule,
            "runner": runner,
            **more,
        }
    )


def epochs(number: int) -> dict[str, Any]:
    return {"type": "EpochBasedRunner", "max_epochs": number}


# Five float trainings: 205 images on a CPU; COCO in 12 epochs on 8 GPUs; YOLOX in 300; iterations;
# a few passes over 400 images. With their images a step and steps an epoch.
TRAININGS = {
    "bccd": (of("AdamW", 1e-3, COSINE, epochs(8)), 8, 129),
    "coco": (of("SGD", 0.02, STEP, epochs(12)), 16, 7330),
    "yolox": (of("SGD", 0.01, YOLOX, epochs(300)), 64, 1849),
    "iterations": (
        of("SGD", 1e-3, STEP, {"type": "IterBasedRunner", "max_iters": 120_000}), 24, 680,
    ),
    "short": (of("AdamW", 1e-3, COSINE, epochs(8)), 8, 46),
}  # fmt: skip
# Recipe, training: learning rate, length in the runner's unit, steps, warm-up.
EXPECTED = {
    ("qat-int8", "bccd"): (1e-4, 1, 129, 6),
    ("qat-int8", "coco"): (2e-3, 2, 14660, 500),
    ("qat-int8", "yolox"): (1e-3, 38, 70262, 500),
    ("qat-int8", "iterations"): (1e-4, 15_000, 15_000, 500),
    ("qat-int8", "short"): (1e-4, 3, 138, 7),
    ("qat-w4a8", "bccd"): (2e-4, 4, 516, 26),
    ("qat-w4a8", "coco"): (4e-3, 3, 21990, 500),
    ("qat-w4a8", "short"): (2e-4, 9, 414, 21),
    ("qat-w4a4", "iterations"): (2e-4, 45_000, 45_000, 500),
    ("qat-w4a4", "short"): (2e-4, 14, 644, 32),
}


def training(name: str, **more: Any) -> FloatTraining:
    config, images, steps = TRAININGS[name]
    return float_training(config, steps_per_epoch=steps, images_per_step=images, **more)


def numbers(recipe: str, name: str, **more: Any) -> Numbers:
    return numbers_of(recipe, RULES[recipe], training(name), folded_norms=False, **more)


@pytest.mark.parametrize(("recipe", "name"), EXPECTED)
def test_five_float_trainings(recipe: str, name: str) -> None:
    found = numbers(recipe, name)
    rate, length, steps, warm_up = EXPECTED[recipe, name]
    assert found.rate == pytest.approx(rate)
    assert (found.length, found.steps, found.warm_up) == (length, steps, warm_up)


@pytest.mark.parametrize("recipe", RULES)
@pytest.mark.parametrize("name", TRAININGS)
def test_every_recipe_has_enough_steps_and_ends_low(recipe: str, name: str) -> None:
    found = numbers(recipe, name)
    assert found.steps >= RULES[recipe].least_steps
    assert 0 < found.last_rate <= 0.01 * found.rate
    assert 0 < found.warm_up < found.steps / 10
    # The average forgets the start: its weight decays over the steps by more than e^-5.
    assert found.average * found.steps >= 5


@pytest.mark.parametrize("name", TRAININGS)
def test_the_overrides_fit_the_runner_and_the_end_is_evaluated(name: str) -> None:
    config = TRAININGS[name][0]
    config = Config({**config._cfg_dict, "evaluation": {"interval": 4}, "optimizer_config": None})
    found = numbers("qat-w4a8", name)
    overrides = found.overrides(config)
    key = "runner.max_iters" if name == "iterations" else "runner.max_epochs"
    assert overrides[key] == found.length
    assert overrides["optimizer.lr"] == found.rate
    assert overrides["lr_config"]["_delete_"] is True
    assert found.length % overrides["evaluation.interval"] == 0
    assert overrides["evaluation.interval"] <= 4
    assert overrides["optimizer_config.grad_clip"]["max_norm"] > 0


def test_a_clipping_of_the_config_stays() -> None:
    config = Config({"optimizer_config": {"grad_clip": {"max_norm": 1}}, "runner": epochs(2)})
    assert "optimizer_config.grad_clip" not in numbers("qat-int8", "bccd").overrides(config)


# What else a config must have.
PARTS = {"model": {"type": "X"}, "data": {"train": {"type": "X"}}}


def test_a_momentum_that_follows_the_float_rates_is_constant() -> None:
    """A cyclic momentum, for example, goes with the cyclic rates that the recipe replaces."""
    cyclic = {"policy": "cyclic", "target_ratio": (0.85 / 0.95, 1), "cyclic_times": 1}
    clip = {"grad_clip": None}
    given = of("SGD", 0.01, {"policy": "cyclic"}, epochs(8), momentum_config=cyclic)
    config = finish(Config({**given._cfg_dict, "optimizer_config": clip, **PARTS}))
    overrides = numbers("qat-int8", "bccd").overrides(config)
    assert training_config(config, overrides).get("momentum_config") is None
    own = {**overrides, "momentum_config": {**cyclic, "cyclic_times": 2}}  # The user's.
    assert training_config(config, own).momentum_config.cyclic_times == 2
    plain = of("SGD", 0.01, None, epochs(8), optimizer_config=clip)
    assert "momentum_config" not in numbers("qat-int8", "bccd").overrides(plain)


def test_yolox_begins_without_mosaic() -> None:
    hooks = [{"type": "YOLOXModeSwitchHook", "num_last_epochs": 15}, {"type": "SyncNormHook"}]
    config = of("SGD", 0.01, YOLOX, epochs(300), custom_hooks=hooks, optimizer_config=None)
    found = numbers("qat-int8", "yolox").overrides(config)["custom_hooks"]
    assert found[0]["num_last_epochs"] == 37  # Of 38 epochs.
    assert found[1] == hooks[1]
    # A float training that never switched goes on as it was.
    short = of("SGD", 0.01, YOLOX, epochs(10), custom_hooks=hooks, optimizer_config=None)
    assert "custom_hooks" not in numbers("qat-int8", "yolox").overrides(short)


def test_the_users_shares_have_priority() -> None:
    found = numbers("qat-w4a8", "short", rate=0.5, passes=0.25)
    # Also over the least number of steps.
    assert (found.rate, found.length) == (pytest.approx(5e-4), 2)


@pytest.mark.parametrize(
    ("optimizer", "expected"), [("SGD", 0.25), ("AdamW", 0.5), ("Adamax", 0.5), ("Lamb", 0.5)]
)
def test_the_rate_follows_the_batch(optimizer: str, expected: float) -> None:
    config = of(optimizer, 1e-3, COSINE, epochs(8))
    more = {"steps_per_epoch": 10, "images_per_step": 4}
    assert float_training(config, **more).batch_factor == 1.0
    known = float_training(config, **more, former_images_per_step=16)
    assert known.batch_factor == expected
    # mmdet's configs say for which batch their rate is; the checkpoint's own batch counts more.
    config.auto_scale_lr = {"enable": False, "base_batch_size": 16}
    assert float_training(config, **more).batch_factor == expected
    assert float_training(config, **more, former_images_per_step=4).batch_factor == 1.0
    # The launcher scales the rate itself then.
    config.auto_scale_lr.enable = True
    assert float_training(config, **more).batch_factor == 1.0


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (None, (1e-2, 1e-2)),
        ({"policy": "fixed"}, (1e-2, 1e-2)),
        ({"policy": "Step", "step": [8, 11]}, (1e-2, 1e-4)),
        ({"policy": "step", "step": 3, "gamma": 0.5}, (1e-2, 5e-3)),
        ({"policy": "StepLrUpdaterHook", "step": [8, 11], "min_lr": 1e-3}, (1e-2, 1e-3)),
        ({"policy": "CosineAnnealing", "min_lr_ratio": 0.01}, (1e-2, 1e-4)),
        ({"policy": "CosineAnnealing", "min_lr": 0}, (1e-2, 0.0)),
        ({"policy": "YOLOX", "min_lr_ratio": 0.05}, (1e-2, 5e-4)),
        ({"policy": "poly", "power": 0.9, "min_lr": 1e-5}, (1e-2, 1e-5)),
        ({"policy": "OneCycle", "max_lr": 0.1}, (0.1, 0.1 / 25 / 1e4)),
        ({"policy": "cyclic", "target_ratio": (10, 1e-2)}, (0.1, 1e-4)),
        ({"policy": "cyclic", "target_ratio": 10.0}, (0.1, 1e-6)),
        ({"policy": "cyclic", "target_ratio": (10,)}, (0.1, 1e-6)),
        ({"policy": "OneCycle", "max_lr": {"optimizer": 0.1}}, (0.1, 0.1 / 25 / 1e4)),
        ({"policy": "OneCycle", "max_lr": [0.1, 0.05]}, (0.1, 0.1 / 25 / 1e4)),
        ({"policy": "MyOwn"}, (1e-2, 1e-2)),
    ],
)
def test_the_rates_of_mmcvs_schedules(schedule: Any, expected: tuple[float, float]) -> None:
    assert rates(1e-2, schedule) == pytest.approx(expected)


def test_a_config_without_rate_or_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"quant.recipe takes the learning rate from optimizer.lr"):
        float_training(
            Config({"optimizer": {"type": "SGD"}, "runner": epochs(2)}),
            steps_per_epoch=1, images_per_step=1,
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"takes the length from runner.max_epochs"):
        float_training(
            of("SGD", 0.1, None, {"type": "IterBasedRunner"}), steps_per_epoch=1, images_per_step=1
        )


def test_without_norms_the_updates_are_smaller() -> None:
    rule = RULES["qat-int8"]
    found = [
        numbers_of("qat-int8", rule, training("yolox"), folded_norms=folded)
        for folded in (False, True)
    ]
    assert [n.most_update for n in found] == pytest.approx([3e-3, 1e-4])
    assert "batch norms have no statistics and stay fixed" in str(found[1])


@pytest.mark.parametrize("name", RULES)
def test_recipes_fix_norms_after_a_fifth(name: str) -> None:
    assert merged(RULES[name], {})["schedule"]["freeze_norm_after"] == 0.2
    given = merged(RULES[name], {"schedule": {"freeze_norm_after": 0.5}})
    assert given["schedule"]["freeze_norm_after"] == 0.5


@pytest.mark.parametrize("name", RULES)
def test_only_weights_of_8_bits_are_averaged(name: str) -> None:
    section = merged(RULES[name], {})
    assert ("ema" in section) == section["preset"].startswith("int8")
    assert merged(RULES[name], {"ema": {"momentum": 0.1}})["ema"] == {"momentum": 0.1}


def test_unknown_recipes_name_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"quant.recipe 'qat-w4a9' does not exist; .*qat-w4a8"):
        rule_named("qat-w4a9")
    with pytest.raises(ValueError, match=r"\['qat-int8'\] does not exist"):
        rule_named(["qat-int8"])


def test_a_users_section_is_laid_over_a_recipes() -> None:
    own = {"schedule": {"round_after": 0.1}, "distill": None, "rules": []}
    found = merged(RULES["qat-w4a8"], own)
    assert found["schedule"] == {
        "freeze_norm_after": 0.2, "freeze_ranges_after": 1.0, "round_after": 0.1,
    }  # fmt: skip
    assert found["distill"] is None
    assert found["rules"] == []
    # The recipe itself is not changed.
    assert "round_after" not in RULES["qat-w4a8"].section["schedule"]


@pytest.mark.parametrize(
    ("weight", "activation", "name"),
    [(8, 8, "qat-int8"), (4, 8, "qat-w4a8"), (4, 4, "qat-w4a4"), (2, 2, "qat-w4a4"),
     (16, 16, "qat-int8"), (8, 4, "qat-int8")],
)  # fmt: skip
def test_the_limits_of_a_width(weight: int, activation: int, name: str) -> None:
    assert rule_of_width(weight, activation) is RULES[name]


def test_a_broken_training_is_doubted() -> None:
    before = of("AdamW", 1e-3, COSINE, epochs(8))
    fine = of("AdamW", 1e-4, COSINE, epochs(4))
    assert not list(doubts(fine, before, RULES["qat-w4a8"], 129, "W4A8"))
    # A rate 100 times too high, one epoch of ten steps.
    broken = of("AdamW", 1e-2, COSINE, epochs(1))
    few, high = doubts(broken, before, RULES["qat-w4a8"], 10, "W4A8")
    assert "10 steps are few for W4A8" in few
    assert "'runner.max_epochs': 40" in few
    assert "learning rate of QAT is 0.01, above that of the float training (0.001)" in high
    in_steps = of("AdamW", 1e-4, None, {"type": "IterBasedRunner", "max_iters": 10})
    (few,) = doubts(in_steps, before, RULES["qat-int8"], 10, "int8")
    assert "'runner.max_iters': 100" in few


def test_a_rate_is_doubted_only_against_one_that_it_can_be_compared_with() -> None:
    before = of("SGD", 1e-2, COSINE, epochs(8))
    high = of("SGD", 1e-1, COSINE, epochs(100))
    (said,) = doubts(high, before, RULES["qat-int8"], 129, "int8", batch_factor=4.0)
    assert "(0.04 for as many images a step)" in said
    assert "'optimizer.lr': 0.004" in said
    # The float training's rate for so many images; with fewer images it stays the config's own.
    assert not list(doubts(high, before, RULES["qat-int8"], 129, "int8", batch_factor=10.0))
    assert not list(doubts(before, before, RULES["qat-int8"], 129, "int8", batch_factor=0.5))
    # Of another optimizer, and below the highest rate of a cycle.
    other = of("AdamW", 1e-1, COSINE, epochs(100))
    assert not list(doubts(other, before, RULES["qat-int8"], 129, "int8"))
    cycle = of("SGD", 1e-2, {"policy": "cyclic", "target_ratio": (20, 1e-4)}, epochs(8))
    assert not list(doubts(high, cycle, RULES["qat-int8"], 129, "int8"))


@pytest.mark.parametrize(
    ("now", "former", "num_images", "factor"),
    [
        (64, 2, 4, 2.0),
        (64, 64, 4, 1.0),
        (4, 64, 4, 1 / 16),
        (64, 2, 1000, 32.0),
        (64, 2, None, 32.0),
    ],
)
def test_images_that_are_repeated_in_a_step_do_not_raise_the_rate(
    now: int, former: int, num_images: int | None, factor: float
) -> None:
    found = float_training(
        of("SGD", 0.01, STEP, epochs(12)),
        steps_per_epoch=1,
        images_per_step=now,
        former_images_per_step=former,
        num_images=num_images,
    )
    assert found.batch_factor == factor
