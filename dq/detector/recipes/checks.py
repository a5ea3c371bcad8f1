"""Say before a quantized training why it may fail."""

from __future__ import annotations

from collections.abc import Iterator

from mmcv import Config

from dq.counted import counted
from dq.detector.recipes.rules import Rule


def doubts(
    config: Config, before: Config, rule: Rule, steps_per_epoch: int, bits: str
) -> Iterator[str]:
    """Yield a sentence for each reason to doubt a quantized training, with the remedy.

    Args:
        config: Of the quantized training, with all overrides.
        before: Of the float training.
        rule: The recipe of this width, for its least number of steps.
        steps_per_epoch: With the present images and ranks.
        bits: Name of the width, for the message.
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
    rate, float_rate = config.optimizer.get("lr"), before.optimizer.get("lr")
    if isinstance(rate, int | float) and isinstance(float_rate, int | float) and rate > float_rate:
        yield (
            f"the learning rate of QAT is {rate:g}, above that of the float training"
            f" ({float_rate:g}): what the detector has learned will be lost; quantized trainings"
            f" use a tenth of it (quant.training={{'optimizer.lr': {float_rate / 10:g}}})"
        )
