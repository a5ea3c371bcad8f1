"""When a quantized training calibrates, observes, freezes its ranges and its batch norms."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The phases of a quantized training, as shares of its steps.

    Shares and not epochs, so that one recipe serves runs of any length, by epoch or by iteration.

    Attributes:
        calibration_batches: Batches that calibration looks at.
        calibration_batch_size: Images in each.
        freeze_norm_after: Share of the steps after which batch norms use and keep their running
            statistics; 1 for never.
        freeze_ranges_after: Share of the steps after which ranges stay; 1 for never.
    """

    calibration_batches: int = 32
    calibration_batch_size: int = 8
    freeze_norm_after: float = 0.5
    freeze_ranges_after: float = 0.7

    def __post_init__(self) -> None:
        for name in ("calibration_batches", "calibration_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"quant.schedule.{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("freeze_norm_after", "freeze_ranges_after"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(
                    f"quant.schedule.{name} is {getattr(self, name)}; it is a share of the"
                    " training's steps, from 0 (at once) to 1 (never)"
                )
