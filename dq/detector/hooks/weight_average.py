"""mmdet's and mmcv's EMA hooks, done by one average that is exact: rule, buffers, resuming.

The hooks themselves keep a second set of weights in the model under names of its own, average
infinite ranges of quantizers too, and lose the training's own weights when it is resumed.
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
        momentum_at: Weight of the step of this number, counted from 0; None for a step that is
            passed over.
        skip_buffers: Take running statistics as they are.
        described: For the log.
    """

    momentum_at: Callable[[int], float | None]
    skip_buffers: bool
    described: str


def averaged_by(rule: AverageRule, detector: nn.Module) -> WeightAverage:
    """Return the average of a detector's weights, which begins with those it has now."""
    log.info("%s is done by an average of our own, with its rule", rule.described)
    return WeightAverage(detector, rule.momentum_at, skip_buffers=rule.skip_buffers)


def without_ema_hooks(
    hooks: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None,
) -> tuple[list[Any], AverageRule | None]:
    """Take EMA hooks out of ``custom_hooks`` and return the rule by which they average.

    Args:
        hooks: The config's ``custom_hooks``.

    Returns:
        The other hooks, and the rule; None where there is none.

    Raises:
        ValueError: There are two, one is mistyped, or one is to resume by itself.
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
            f"custom_hooks: {kind.__name__}.resume_from is not read; the average goes on with its"
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
    """What mmdet's hooks look at of a runner."""

    def __init__(self, iteration: int) -> None:
        self.iter = iteration


def _of_mmdet(hook: Any) -> Callable[[int], float | None]:
    def momentum(step: int) -> float | None:
        if (step + 1) % hook.interval:
            return None
        return float(hook.get_momentum(_Progress(step)))

    return momentum
