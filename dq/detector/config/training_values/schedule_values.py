"""Whether a config's ``lr_config`` has values from which mmcv's schedules can compute rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dq.field_types import check_value

# Policies of mmcv whose rates are known, in lower case.
FALLING = ("cosineannealing", "flatcosineannealing", "yolox", "poly", "linearannealing")
KNOWN = ("fixed", "step", "onecycle", "cyclic", *FALLING)
_TYPES: Mapping[str, Any] = {
    "by_epoch": bool,
    "warmup": str | None,
    "warmup_iters": int,
    "warmup_ratio": float,
    "step": int | tuple[int, ...],
    "gamma": float,
    "min_lr": float | None,
    "min_lr_ratio": float | None,
    # One number for each group of parameters, or for each optimizer.
    "max_lr": float | tuple[float, ...] | Mapping[str, float],
    "div_factor": float,
    "final_div_factor": float,
    "target_ratio": float | tuple[float, ...],
}


def policy_of(schedule: Mapping[str, Any]) -> str:
    """Return the name of a schedule's policy in lower case, without the ending of mmcv's hooks."""
    return str(schedule.get("policy", "fixed")).lower().removesuffix("lrupdaterhook")


def check_schedule(schedule: Any) -> None:
    """Raise ValueError for the first value of a known policy that is of another type.

    Args:
        schedule: ``lr_config``. What is right for a policy of the user's own is not known.
    """
    if not isinstance(schedule, Mapping) or policy_of(schedule) not in KNOWN:
        return
    for name, annotation in _TYPES.items():
        if name in schedule:
            check_value(f"lr_config.{name}", schedule[name], annotation)
