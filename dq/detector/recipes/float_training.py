"""What a config says about its float training: its rates, its length, its batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmcv import Config

from dq.detector.config.training_values.schedule_values import FALLING, check_schedule, policy_of

# Optimizers whose update does not depend on the gradient's size. Their learning rate scales with
# the square root of the batch size (Malladi et al. 2022, arXiv 2205.10287). The rate of all others
# scales with the batch size itself.
ADAPTIVE = ("Ada", "RMS", "NAdam", "RAdam", "Lamb", "Lion", "Rprop")


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatTraining:
    """The float training of a config, with the images and ranks of the present command.

    Attributes:
        optimizer: Its type.
        peak_rate: Highest learning rate.
        last_rate: Learning rate of the last step.
        length: In ``unit``.
        unit: ``epochs`` or ``iterations``.
        steps_per_epoch: Of the present command.
        images_per_step: Of the present command.
        former_images_per_step: Of the training that the rates were chosen for, if known.
    """

    optimizer: str
    peak_rate: float
    last_rate: float
    length: int
    unit: str
    steps_per_epoch: int
    images_per_step: int
    former_images_per_step: int | None = None

    @property
    def steps(self) -> int:
        """Number of its steps."""
        return self.length * (self.steps_per_epoch if self.unit == "epochs" else 1)

    @property
    def is_adaptive(self) -> bool:
        """Whether the update does not depend on the gradient's size."""
        return self.optimizer.startswith(ADAPTIVE)

    @property
    def batch_factor(self) -> float:
        """Factor of the rate for a batch that differs from the one of the checkpoint's training."""
        if not self.former_images_per_step:
            return 1.0
        share = self.images_per_step / self.former_images_per_step
        return float(share**0.5) if self.is_adaptive else share


def float_training(
    config: Config,
    *,
    steps_per_epoch: int,
    images_per_step: int,
    former_images_per_step: int | None = None,
    num_images: int | None = None,
) -> FloatTraining:
    """Read the float training of a complete config.

    Args:
        config: Without the overrides of a quantized training.
        steps_per_epoch: Of the present images and ranks.
        images_per_step: Over all ranks.
        former_images_per_step: Of the checkpoint's training. None if unknown; the config's
            ``auto_scale_lr.base_batch_size`` counts then. Neither has an effect if the config
            scales rates itself (``auto_scale_lr.enable``).
        num_images: Of the data set; None for no limit. A batch that is larger repeats images, which
            does not raise the rate.

    Raises:
        ValueError: The config has no learning rate or no length.
    """
    rate = config.optimizer.get("lr")
    if not isinstance(rate, int | float) or rate <= 0:
        raise ValueError(
            "quant.recipe takes the learning rate from optimizer.lr of the config, which is"
            f" {rate!r}; give the rate of the float training"
        )
    runner = config.runner
    unit = "iterations" if runner.get("max_epochs") is None else "epochs"
    length = runner.get("max_epochs") if unit == "epochs" else runner.get("max_iters")
    if not isinstance(length, int) or length < 1:
        raise ValueError(
            "quant.recipe takes the length from runner.max_epochs or runner.max_iters of the"
            f" config, which is {length!r}; give the length of the float training"
        )
    scaling = config.get("auto_scale_lr") or {}
    former = former_images_per_step or scaling.get("base_batch_size")
    if former and num_images:
        images_per_step = min(images_per_step, max(num_images, former))
    peak, last = rates(float(rate), config.get("lr_config"))
    return FloatTraining(
        optimizer=str(config.optimizer.get("type")),
        peak_rate=peak,
        last_rate=last,
        length=length,
        unit=unit,
        steps_per_epoch=steps_per_epoch,
        images_per_step=images_per_step,
        former_images_per_step=None if scaling.get("enable", False) else former,
    )


def rates(rate: float, schedule: Mapping[str, Any] | None) -> tuple[float, float]:
    """Return the highest and the last learning rate of mmcv's schedules.

    Args:
        rate: ``optimizer.lr``.
        schedule: ``lr_config``; None for a constant rate. For an unknown policy, both results are
            ``rate``.

    Raises:
        ValueError: A value that decides a rate is no number.
    """
    check_schedule(schedule)
    given = dict(schedule or {})
    policy, share = policy_of(given), given.get("min_lr_ratio")
    least = given.get("min_lr") if share is None else share * rate
    if policy == "step":
        steps = given.get("step", ())
        number = len(steps) if isinstance(steps, list | tuple) else 1
        return rate, max(least or 0.0, rate * given.get("gamma", 0.1) ** number)
    if policy in FALLING:
        return rate, float(least or 0.0)
    if policy == "onecycle":
        peak = given.get("max_lr", rate)
        if isinstance(peak, Mapping | list | tuple):
            # One for each group of parameters, or for each optimizer.
            peak = max(peak.values() if isinstance(peak, Mapping) else peak)
        peak = float(peak)
        return peak, peak / given.get("div_factor", 25) / given.get("final_div_factor", 1e4)
    if policy == "cyclic":
        ratio = given.get("target_ratio", (10, 1e-4))
        # mmcv's lowest rate, if only the highest is given.
        ratio = ratio if isinstance(ratio, list | tuple) else (ratio,)
        up, down = (*ratio, ratio[0] / 1e5)[:2]
        return rate * up, rate * down
    return rate, rate
