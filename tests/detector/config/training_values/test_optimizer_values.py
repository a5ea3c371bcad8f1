"""``optimizer_config`` and ``fp16`` with wrong values are refused when the config is read."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dq.detector.config.read import finish
from dq.detector.config.training_values.optimizer_values import CUMULATIVE, clip_arguments
from tests.detector.minimal import minimal


def refusal(section: dict[str, Any], fp16: Any = None) -> str:
    """Return why a config with these sections is refused; empty if it is not."""
    try:
        finish(minimal(optimizer_config=section, fp16=fp16))
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", CUMULATIVE)
@pytest.mark.parametrize("value", ["4", 0, 1.5, True, None, [4]])
def test_cumulative_steps_are_a_whole_number(kind: str, value: Any) -> None:
    section = {"type": kind, "cumulative_iters": value}
    reason = refusal(section)
    assert reason.startswith(f"optimizer_config.cumulative_iters is {value!r}; give a whole")
    assert not refusal({"type": kind, "cumulative_iters": 4})


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ({}, "grad_clip is {}, without max_norm; give the largest norm"),
        ({"norm_type": 2}, "without max_norm"),
        ({"max_norm": "35"}, "grad_clip.max_norm is '35'; use a number"),
        ({"max_norm": True}, "grad_clip.max_norm is True; use a number"),
        ({"max_norm": 35, "norm_type": [2]}, "grad_clip.norm_type is .2.; use a number or a text"),
        ({"max_norm": 35, "norm_type": "two"}, "grad_clip.norm_type is 'two'; use a number or"),
        ({"max_nrom": 35}, "grad_clip.max_nrom is not a setting; did you mean max_norm"),
    ],
)
def test_clipping_has_a_largest_norm(clip: dict[str, Any], message: str) -> None:
    for kind in ("OptimizerHook", "Fp16OptimizerHook", *CUMULATIVE):
        section = {"type": kind, "grad_clip": clip}
        assert re.match(f"optimizer_config.*{message}", refusal(section))


@pytest.mark.parametrize("clip", [None, {"max_norm": 35}, {"max_norm": 0.1, "norm_type": "inf"}])
def test_clipping_as_in_mmcv_passes(clip: Any) -> None:
    assert not refusal({"grad_clip": clip})


@pytest.mark.parametrize(
    ("scale", "is_right"),
    [
        *[(scale, True) for scale in ("dynamic", 512, 512.0, {}, {"init_scale": 512.0})],
        *[(scale, False) for scale in ("x", True, None, [5], {"init_scal": 1}, {"init_scale": ""})],
    ],
)
def test_a_loss_scale_is_dynamic_a_number_or_arguments(scale: Any, is_right: bool) -> None:
    reason = refusal({}, {"loss_scale": scale})
    assert bool(reason) is not is_right
    assert is_right or reason.startswith("fp16.loss_scale")


@pytest.mark.parametrize("given", ["no", 1, None])
def test_anomalies_are_looked_for_or_not(given: Any) -> None:
    reason = refusal({"detect_anomalous_params": given})
    assert reason == f"optimizer_config.detect_anomalous_params is {given!r}; use True or False"


def test_an_optimizer_hook_of_the_users_own_has_its_own_values() -> None:
    section = {"type": "MyHook", "grad_clip": {"share": 0.1}, "cumulative_iters": "many"}
    assert not refusal(section)
    assert refusal({**section, "grad_clip": 5}).startswith("optimizer_config.grad_clip is 5")


@pytest.mark.parametrize(
    ("clip", "found"),
    [
        (None, None),
        ({}, None),
        ({"norm_type": 2}, None),
        ({"max_norm": "wide"}, None),
        ({"max_norm": 35, "norm_type": 2}, {"max_norm": 35, "norm_type": 2}),
        ({"max_norm": 35, "share": 0.1}, {"max_norm": 35}),
    ],
)
def test_a_trial_step_clips_only_as_the_training_does(clip: Any, found: Any) -> None:
    assert clip_arguments({"type": "MyHook", "grad_clip": clip}) == found
    assert clip_arguments({}) is None
