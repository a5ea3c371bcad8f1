"""Optional parts of a quantized training, all off by default."""

from __future__ import annotations

from dataclasses import dataclass

from dq.quant.training.distillation import Distill
from dq.quant.training.oscillation import Oscillation
from dq.quant.training.weight_average import Ema


@dataclass(frozen=True, slots=True, kw_only=True)
class Refinements:
    """Optional parts of a quantized training.

    Attributes:
        learned_lr: Learning rate of learned scales, offsets and clipping values, relative to the
            weights'. Their gradients already are scaled to fit the weights' rate.
        oscillation: Measure oscillating weights, freeze or dampen them.
        ema: Average the weights; the average is evaluated and saved.
        distill: Learn from the float model.
    """

    learned_lr: float = 1.0
    oscillation: Oscillation | None = None
    ema: Ema | None = None
    distill: Distill | None = None

    def __post_init__(self) -> None:
        if self.learned_lr < 0.0:
            raise ValueError(f"quant.learned_lr is {self.learned_lr}; use 0 or more, such as 0.1")
