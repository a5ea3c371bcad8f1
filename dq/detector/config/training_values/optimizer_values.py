"""Whether a config's ``optimizer_config`` and ``fp16`` have values that an optimizer step can use.

They are checked when the config is read. In a chain of commands, a quantized training would fail
after hours of float training otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dq.field_types import check_value, fits
from dq.names import check_keys

CUMULATIVE = ("GradientCumulativeOptimizerHook", "GradientCumulativeFp16OptimizerHook")
# Types that the launcher's own step takes the place of.
REPLACED = ("OptimizerHook", "Fp16OptimizerHook", *CUMULATIVE)
DYNAMIC = "dynamic"
_CLIP = "optimizer_config.grad_clip"
# Arguments of torch's clip_grad_norm_.
_OF_CLIP: Mapping[str, Any] = {
    "max_norm": float,
    "norm_type": float | str,
    "error_if_nonfinite": bool,
    "foreach": bool | None,
}
# Arguments of torch's GradScaler.
_OF_SCALER: Mapping[str, Any] = {
    "init_scale": float,
    "growth_factor": float,
    "backoff_factor": float,
    "growth_interval": int,
    "enabled": bool,
}


def check_optimizer_values(section: Mapping[str, Any], fp16: Any) -> None:
    """Raise ValueError for a value that cannot be used.

    Args:
        section: ``optimizer_config``. If its type is the user's own, only that knows what is right.
        fp16: The section; anything but a dict is left alone.
    """
    if isinstance(fp16, Mapping) and "loss_scale" in fp16:
        _check_loss_scale("fp16.loss_scale", fp16["loss_scale"])
    kind = section.get("type", "OptimizerHook")
    clip = section.get("grad_clip")
    if clip is not None and not isinstance(clip, Mapping):
        raise ValueError(f"{_CLIP} is {clip!r}; give a dict, or None")
    if kind not in REPLACED:
        return
    if clip is not None:
        _check_clip(clip)
    if "detect_anomalous_params" in section:
        name = "detect_anomalous_params"
        check_value(f"optimizer_config.{name}", section[name], bool)
    if "loss_scale" in section:
        _check_loss_scale("optimizer_config.loss_scale", section["loss_scale"])
    steps = section.get("cumulative_iters", 1)
    is_whole = isinstance(steps, int) and not isinstance(steps, bool)
    if kind in CUMULATIVE and not (is_whole and steps >= 1):
        raise ValueError(
            f"optimizer_config.cumulative_iters is {steps!r}; give a whole number from 1 up"
        )


def clip_arguments(section: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments of torch's ``clip_grad_norm_``; None if gradients are not clipped.

    Args:
        section: ``optimizer_config``. A type of the user's own may clip in another way, which is
            not known; then the result is None too.
    """
    given = section.get("grad_clip") or {}
    found = {
        name: given[name]
        for name, annotation in _OF_CLIP.items()
        if name in given and fits(given[name], annotation)
    }
    return found if "max_norm" in found else None


def _check_clip(given: Mapping[str, Any]) -> None:
    _check_arguments(_CLIP, given, _OF_CLIP)
    if "max_norm" not in given:
        raise ValueError(
            f"{_CLIP} is {dict(given)!r}, without max_norm; give the largest norm, such as"
            " dict(max_norm=35, norm_type=2), or None for no clipping"
        )
    norm_type = given.get("norm_type")
    if isinstance(norm_type, str) and norm_type not in ("inf", "-inf"):
        raise ValueError(f"{_CLIP}.norm_type is {norm_type!r}; use a number or 'inf'")


def _check_loss_scale(where: str, given: Any) -> None:
    if isinstance(given, Mapping):
        _check_arguments(where, given, _OF_SCALER)
    elif given != DYNAMIC and not fits(given, float):
        raise ValueError(f"{where} is {given!r}; use 'dynamic', a number or dict(init_scale=512.0)")


def _check_arguments(where: str, given: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    check_keys(given, types, where)
    for name, value in given.items():
        check_value(f"{where}.{name}", value, types[name])
