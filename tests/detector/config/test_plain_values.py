"""Values of another type end in a line that names the setting, not deep in mmcv."""

from __future__ import annotations

import pytest

from dq.detector.config.read import finish, read_config
from dq.shipped import shipped

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
