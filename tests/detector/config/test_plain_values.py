"""Values of another type end in a line that names the setting, not deep in mmcv."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from mmcv import Config

from dq.detector.config import known_types, plain_values
from dq.detector.config.known_types import check_training_types
from dq.detector.config.mmdet_keys import CHECKPOINT_KEYS, KEYS, OWN
from dq.detector.config.read import finish, read_config, training_config
from dq.detector.data.loader_options import LoaderOptions, evaluation_workers
from dq.detector.evaluation.metric_settings import arguments_of, check_metric_settings
from dq.detector.training.checkpoint_plan import checkpoint_plan
from dq.field_types import fits
from dq.shipped import shipped
from tests.detector.minimal import minimal

CONFIG = shipped()["digits/ssd_resnet_fpn_160"]

NUMBERS = (
    "runner.max_epochs",
    "data.workers_per_gpu",
    "data.train_dataloader.workers_per_gpu",
    "log_config.interval",
    "data.train.times",
)
WRONG = {
    **{f"{key}={value}": "give a whole number from" for key in NUMBERS for value in ("a", "1.5")},
    **{f"{key}=-2": "give a whole number from" for key in NUMBERS},
    "data.train.times=0": "give a whole number from 1 up",
    "data_root=5": "give a path as text",
    "load_from=5": "give a path as text",
    "resume_from=5": "give a path as text",
    "optimizer_config.grad_clip=a": "give a dict, or None",
}


@pytest.mark.parametrize("option", WRONG)
def test_a_wrong_value_names_its_setting(option: str) -> None:
    key = option.partition("=")[0]
    with pytest.raises(ValueError, match=f"^{key} is .*; {WRONG[option]}"):
        finish(read_config(CONFIG, [option]))


@pytest.mark.parametrize("option", ["runner.max_epochs=0", "log_config.interval=0", "load_from="])
def test_usual_values_pass(option: str) -> None:
    finish(read_config(CONFIG, [option]))


@pytest.fixture(autouse=True)
def _without_types_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """To find out which exist takes long, and no value here belongs to one."""
    monkeypatch.setattr(known_types, "check_model_types", lambda model: None)


# One of each type, and lists and dicts of them.
VALUES: tuple[Any, ...] = (
    *("x", 5, 0, 0.5, True, False, None),
    *([], ["x"], [5], (5,), [{}], {}, {"x": 5}),
)


def with_value(key: str, value: Any, **more: Any) -> Config:
    """Return a small config in which a setting, by its dotted key, has a value."""
    config = minimal(**more)
    *sections, last = key.split(".")
    whole = here = config._cfg_dict.to_dict()
    for part in sections:
        here = here.setdefault(part, {})
    here[last] = copy.deepcopy(value)
    return Config(whole)


def refusal(config: Config) -> str:
    """Return why a config is refused before a training is built; empty if it is not."""
    try:
        complete = finish(config)
        check_training_types(complete)
        check_metric_settings(complete)
        arguments_of(complete.evaluation)
        if LoaderOptions.of(complete) and complete.data.get("val"):
            evaluation_workers(complete, "val")
        checkpoint_plan(complete.checkpoint_config, counts_epochs=True)
    except ValueError as error:
        return str(error)
    return ""


TYPED = {
    **plain_values._TYPES,
    **dict.fromkeys(plain_values._NUMBERS, int),
    **dict.fromkeys(plain_values._NUMBERS_OR_NONE, int | None),
    **dict.fromkeys(plain_values._TEXTS, str | None),
}


@pytest.mark.parametrize("key", TYPED)
def test_every_setting_in_the_tables_is_refused_by_name(key: str) -> None:
    for value in VALUES:
        reason = refusal(with_value(key, value))
        if fits(value, TYPED[key]):
            assert not re.match(rf"{key} must be", reason)
        else:
            assert re.match(rf"{re.escape(key)} (is|must be) .*(; (give|use) |, not )", reason)
            assert repr(value) in reason


def keys() -> list[str]:
    """Return all keys of mmdet's tools and of the launcher, and those below the small sections."""
    below = {
        "checkpoint_config": [key.name for key in CHECKPOINT_KEYS],
        "data.train_dataloader": list(LoaderOptions.__dataclass_fields__),
        "data.val_dataloader": list(LoaderOptions.__dataclass_fields__),
        "optimizer_config": ["grad_clip.max_norm", "grad_clip.norm_type", "loss_scale", "type"],
        "evaluation": ["metric", "metric_items", "proposal_nums", "iou_thrs", "classwise"],
        "lr_config": ["policy", "step", "gamma", "warmup_iters", "min_lr"],
        "fp16": ["loss_scale"],
    }
    found = {key.name for key in (*KEYS, *OWN) if key.state != "refused"} | set(TYPED)
    found |= {f"{section}.{name}" for section, names in below.items() for name in names}
    return sorted(found - {"model"})


@pytest.mark.parametrize("key", keys())
def test_no_value_of_any_key_ends_in_a_traceback(key: str) -> None:
    for value in VALUES:
        reason = refusal(with_value(key, value, evaluation={"metric": "bbox"}))
        assert "\n" not in reason
        assert "contradicts itself" not in reason or key == "total_epochs"


@pytest.mark.parametrize("value", [*VALUES, {"backend": 5}])
def test_storage_of_checkpoints_is_a_dict(value: Any) -> None:
    reason = refusal(with_value("checkpoint_config.file_client_args", value))
    right = value is None or (isinstance(value, dict) and "backend" not in value)
    assert reason.startswith("" if right else "checkpoint_config.file_client_args")
    assert bool(reason) is not right


def test_a_quantized_training_is_checked_too() -> None:
    complete = finish(minimal())
    for key, value in (("data", 5), ("accumulate", "2"), ("evaluation.interval", "1")):
        with pytest.raises(ValueError, match=rf"^{key} (is|must be) "):
            training_config(complete, {key: value})
