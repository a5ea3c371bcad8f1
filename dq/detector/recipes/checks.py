"""Say before a quantized training why it may fail."""

from __future__ import annotations

from collections.abc import Iterator

from mmcv import Config

from dq.counted import counted
from dq.detector.recipes.float_training import rates
from dq.detector.recipes.rules import Rule


def doubts(
    config: Config,
    before: Config,
    rule: Rule,
    steps_per_epoch: int,
    bits: str,
    *,
    batch_factor: float = 1.0,
) -> Iterator[str]:
    """Yield a sentence for each reason to doubt a quantized training, with the remedy.

    The rates of two kinds of optimizers cannot be compared, so nothing is said about them.

    Args:
        config: Of the quantized training, with all overrides.
        before: Of the float training.
        rule: The recipe of this width, for its least number of steps.
        steps_per_epoch: With the present images and ranks.
        bits: Name of the width, for the message.
        batch_factor: How much higher the float training's rate would be with the images of a step
            of the quantized training.
    """
    epochs = config.runner.get("max_epochs")
    steps = config.runner.get("max_iters") if epochs is None else epochs * steps_per_epoch
    if isinstance(steps, int) and steps < rule.least_steps:
        longer = "runner.max_iters" if epochs is None else "runner.max_epochs"
        length = rule.least_steps if epochs is None else -(-rule.least_steps // steps_per_epoch)
        yield (
            f"{counted(steps, 'step[s] [is|are]')} few for {bits}: a training of this width"
            f" first loses accuracy and needs about {counted(rule.least_steps, 'step[s]')} to"
            f" regain it; train longer (quant.training={{'{longer}': {length}}})"
        )
    rate, float_rate = _highest_rate(config), _highest_rate(before)
    if rate is None or float_rate is None or config.optimizer.type != before.optimizer.type:
        return
    # With fewer images a step the float training's own rate is no reason for doubt.
    float_rate *= max(1.0, batch_factor)
    if rate > float_rate * (1 + 1e-9):
        as_many = " for as many images a step" if batch_factor > 1 else ""
        lower = config.optimizer.lr * (float_rate / rate) / 10
        yield (
            f"the learning rate of QAT is {rate:g}, above that of the float training"
            f" ({float_rate:g}{as_many}): what the detector has learned will be lost; quantized"
            f" trainings use a tenth of it (quant.training={{'optimizer.lr': {lower:g}}})"
        )


def _highest_rate(config: Config) -> float | None:
    rate = config.optimizer.get("lr")
    if not isinstance(rate, int | float):
        return None
    return rates(float(rate), config.get("lr_config"))[0]
