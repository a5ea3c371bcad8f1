"""Replace mmdet's and mmcv's EMA hooks by one exact average, which can be resumed.

The hooks themselves store a second set of weights in the model under other names, also average
infinite ranges of quantizers, and lose the training's own weights on resuming.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmcv.runner import HOOKS, Hook
from mmcv.runner.hooks.ema import EMAHook
from mmdet.core.hook.ema import BaseEMAHook
from torch import nn

from dq.detector.config.registry_errors import explain
from dq.quant.training.weight_average import WeightAverage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AverageRule:
    """How weights are averaged.

    Attributes:
        momentum_at: Weight of a step by its number, from 0; None for a step that is skipped.
        skip_buffers: Copy running statistics instead of averaging them.
        described: Description for the log.
    """

    momentum_at: Callable[[int], float | None]
    skip_buffers: bool
    described: str


def averaged_by(rule: AverageRule, detector: nn.Module) -> WeightAverage:
    """Return the average of a detector's weights, which starts with the current ones."""
    log.info("%s is replaced by an average of our own, with its rule", rule.described)
    return WeightAverage(detector, rule.momentum_at, skip_buffers=rule.skip_buffers)


def without_ema_hooks(
    hooks: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None,
) -> tuple[list[Any], AverageRule | None]:
    """Remove EMA hooks from ``custom_hooks`` and return their averaging rule.

    Args:
        hooks: The config's ``custom_hooks``.

    Returns:
        The other hooks, and the rule or None.

    Raises:
        ValueError: There are two, one is misspelt, or one has ``resume_from``.
    """
    given = [hooks] if isinstance(hooks, Mapping) else list(hooks or ())
    kept, rules = [], []
    for section in given:
        kind = HOOKS.get(section.get("type")) if isinstance(section, Mapping) else None
        if isinstance(kind, type) and issubclass(kind, BaseEMAHook | EMAHook):
            rules.append(_rule(kind, section))
        else:
            kept.append(section)
    if len(rules) > 1:
        raise ValueError("custom_hooks has two EMA hooks; there is one average, leave one out")
    return kept, rules[0] if rules else None


def _rule(kind: type[Hook], section: Mapping[str, Any]) -> AverageRule:
    arguments = {k: v for k, v in section.items() if k not in ("type", "priority")}
    if arguments.pop("resume_from", None):
        raise ValueError(
            f"custom_hooks: {kind.__name__}.resume_from is not read; the average resumes with its"
            " training: use resume_from of the config, or --resume"
        )
    try:
        hook: Any = kind(**arguments)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"custom_hooks: {kind.__name__}: {explain(error)}") from error
    described = f"{kind.__name__}({', '.join(f'{k}={v}' for k, v in arguments.items())})"
    if isinstance(hook, EMAHook):
        return AverageRule(momentum_at=_of_mmcv(hook), skip_buffers=True, described=described)
    return AverageRule(
        momentum_at=_of_mmdet(hook), skip_buffers=hook.skip_buffers, described=described
    )


def _of_mmcv(hook: Any) -> Callable[[int], float | None]:
    def momentum(step: int) -> float | None:
        if step % hook.interval:
            return None
        return float(min(hook.momentum, (1 + step) / (hook.warm_up + step)))

    return momentum


class _Progress:
    """The attributes of a runner that mmdet's hooks use."""

    def __init__(self, iteration: int) -> None:
        self.iter = iteration


def _of_mmdet(hook: Any) -> Callable[[int], float | None]:
    def momentum(step: int) -> float | None:
        if (step + 1) % hook.interval:
            return None
        return float(hook.get_momentum(_Progress(step)))

    return momentum
