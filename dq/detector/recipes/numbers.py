"""The numbers of one quantized training, from a recipe, the float training and the detector."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmcv import Config

from dq.counted import counted
from dq.detector.recipes.float_training import FloatTraining
from dq.detector.recipes.rules import Rule

# The rate rises over this share of the steps, but over no more than this number of steps.
WARM_UP, MOST_WARM_UP, FIRST_RATE = 0.05, 500, 0.01
# The rate ends at this share of its peak, or at the float training's last rate if that is lower.
LAST_SHARE = 0.01
# The average of the weights covers about this share of the steps.
AVERAGED = 0.1
GRAD_CLIP = {"max_norm": 35, "norm_type": 2}
# Without batch norms, which make a layer's output independent of its weights' size, updates must be
# this much smaller.
FOLDED_UPDATE = 1 / 30
MODE_SWITCH = "YOLOXModeSwitchHook"


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """The numbers that a recipe gives for one training.

    Attributes:
        recipe: Its name.
        rate: Highest learning rate.
        last_rate: Learning rate of the last step.
        length: In ``unit``.
        unit: ``epochs`` or ``iterations``.
        steps: Number of steps, with the images and ranks that it was computed for.
        warm_up: Number of steps in which the rate rises.
        average: Weight of a step in the average of the weights, if they are averaged.
        folded_norms: The detector's batch norms have no statistics, so they are never updated.
        most_update: As in `dq.detector.recipes.rules.Rule`.
    """

    recipe: str
    rate: float
    last_rate: float
    length: int
    unit: str
    steps: int
    warm_up: int
    average: float
    folded_norms: bool
    most_update: float

    def __str__(self) -> str:
        unit = "epoch[s]" if self.unit == "epochs" else "iteration[s]"
        text = (
            f"{self.recipe}: {counted(self.length, unit)} ({counted(self.steps, 'step[s]')}),"
            f" learning rate {self.rate:.3g} falling to {self.last_rate:.3g}, warm-up of"
            f" {counted(self.warm_up, 'step[s]')},"
            f" updates of at most {self.most_update:g} of a layer's norm"
        )
        return (
            f"{text}; batch norms have no statistics and stay fixed" if self.folded_norms else text
        )

    def overrides(self, config: Config) -> dict[str, Any]:
        """Return the config overrides, by dotted key.

        Args:
            config: The complete config of the float training.
        """
        key = "max_epochs" if self.unit == "epochs" else "max_iters"
        found: dict[str, Any] = {
            "optimizer.lr": self.rate,
            f"runner.{key}": self.length,
            "lr_config": {
                "_delete_": True,
                "policy": "CosineAnnealing",
                "by_epoch": False,
                "min_lr_ratio": self.last_rate / self.rate,
                "warmup": "linear",
                "warmup_iters": self.warm_up,
                "warmup_ratio": FIRST_RATE,
            },
        }
        if config.get("momentum_config"):
            # It belongs to the float training's rates and length.
            found["momentum_config"] = None
        clip = config.optimizer_config or {}
        if clip.get("type", "OptimizerHook") == "OptimizerHook" and not clip.get("grad_clip"):
            # mmdet's own configs say None, with which mmcv would not merge a dict.
            replaced = {"_delete_": True} if "grad_clip" in clip else {}
            found["optimizer_config.grad_clip"] = {**replaced, **GRAD_CLIP}
        interval = (config.get("evaluation") or {}).get("interval", 1)
        if isinstance(interval, int) and interval >= 1:
            found["evaluation.interval"] = _divisor(self.length, interval)
        hooks = _without_mosaic(config, self.length if self.unit == "epochs" else 0)
        return found if hooks is None else {**found, "custom_hooks": hooks}


def numbers_of(
    name: str,
    rule: Rule,
    training: FloatTraining,
    *,
    folded_norms: bool,
    rate: float | None = None,
    passes: float | None = None,
) -> Numbers:
    """Return the numbers that a recipe gives for one training.

    Args:
        name: Of the recipe.
        rule: The recipe.
        training: The float training.
        folded_norms: Whether the detector's batch norms are identities, without statistics.
        rate: The user's share of the float rate instead of the recipe's.
        passes: The user's share of the float passes instead of the recipe's; it also lifts the
            recipe's least number of steps.
    """
    share = rule.passes if passes is None else passes
    per_unit = training.steps_per_epoch if training.unit == "epochs" else 1
    wanted = share * training.steps
    if passes is None:
        wanted = max(wanted, rule.least_steps)
    length = max(1, math.ceil(wanted / per_unit - 1e-9))
    steps = length * per_unit
    peak = training.peak_rate * (rule.rate if rate is None else rate) * training.batch_factor
    last = LAST_SHARE * peak
    if 0 < training.last_rate < last:
        last = training.last_rate
    return Numbers(
        recipe=name,
        rate=peak,
        last_rate=last,
        length=length,
        unit=training.unit,
        steps=steps,
        warm_up=max(1, min(MOST_WARM_UP, round(WARM_UP * steps))),
        average=min(0.5, max(1e-4, 1.0 / (AVERAGED * steps))),
        folded_norms=folded_norms,
        most_update=rule.most_update * (FOLDED_UPDATE if folded_norms else 1.0),
    )


def _divisor(length: int, most: int) -> int:
    """Return the largest divisor that is not above ``most``, so that the end is evaluated."""
    return next(n for n in range(min(length, most), 0, -1) if length % n == 0)


def _without_mosaic(config: Config, epochs: int) -> list[dict[str, Any]] | None:
    """Return the hooks with YOLOX's switch set to the first epoch, None if there is no switch.

    The float training ended without mosaic and with the L1 loss, so QAT begins like that.
    """
    hooks: Sequence[Mapping[str, Any]] = config.get("custom_hooks") or ()
    hooks = [hooks] if isinstance(hooks, Mapping) else hooks
    float_epochs = config.runner.get("max_epochs") or 0
    changed = False
    found = []
    for hook in copy.deepcopy(list(hooks)):
        own = dict(hook)
        # A float training that is too short never switched.
        switches = own.get("type") == MODE_SWITCH and own.get("num_last_epochs", 15) < float_epochs
        if epochs and switches:
            own["num_last_epochs"], changed = epochs - 1, True
        found.append(own)
    return found if changed else None
