"""When a training calibrates, observes, fake-quantizes, freezes ranges and batch norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# A share of the training's steps, or dict(epoch=3), or dict(iteration=500).
When = float | Mapping[str, int]
UNITS = ("epoch", "iteration")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress of a training.

    Attributes:
        iteration: Steps done.
        epoch: Epochs done.
        num_iterations: Steps of the whole training.
    """

    iteration: int
    epoch: int
    num_iterations: int

    @property
    def share(self) -> float:
        """Share of the steps that are done, 0 to 1."""
        return self.iteration / max(1, self.num_iterations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The phases of a quantized training.

    Each time is a share of the steps (so one recipe fits runs of any length), or ``dict(epoch=3)``
    or ``dict(iteration=500)``: after that many epochs or steps.

    Attributes:
        calibration_batches: Number of batches for calibration.
        calibration_batch_size: Images in each batch.
        round_after: Fake quantization starts then; before it, ranges are only observed. 0 starts
            at once.
        freeze_norm_after: From then on batch norms use their running statistics and do not update
            them; 1 for never.
        freeze_ranges_after: From then on ranges and learned scales are fixed; 1 for never.
        norm_batches: Number of batches to estimate running statistics again after the last step,
            with fake quantization on; 0 for none.
    """

    calibration_batches: int = 32
    calibration_batch_size: int = 8
    round_after: When = 0.0
    freeze_norm_after: When = 0.5
    freeze_ranges_after: When = 0.7
    norm_batches: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("calibration_batches", 1),
            ("calibration_batch_size", 1),
            ("norm_batches", 0),
        ):
            given = getattr(self, name)
            if given < least:
                raise ValueError(f"quant.schedule.{name} is {given}; it must be {least} or more")
        for name in ("round_after", "freeze_norm_after", "freeze_ranges_after"):
            object.__setattr__(self, name, _checked(name, getattr(self, name)))
        if self.round_after == 1.0:
            raise ValueError("quant.schedule.round_after is 1: the training would never quantize")

    def quantizes(self, progress: Progress) -> bool:
        """Whether the step after ``progress`` fake-quantizes."""
        return self.round_after == 0.0 or _reached(self.round_after, progress)

    def freezes_norm(self, progress: Progress) -> bool:
        """Whether batch norm statistics are fixed in the step after ``progress``."""
        return _reached(self.freeze_norm_after, progress)

    def freezes_ranges(self, progress: Progress) -> bool:
        """Whether ranges are fixed in the step after ``progress``."""
        return self.quantizes(progress) and _reached(self.freeze_ranges_after, progress)


def _checked(name: str, when: When) -> When:
    if isinstance(when, Mapping):
        if len(when) != 1 or next(iter(when)) not in UNITS:
            raise ValueError(
                f"quant.schedule.{name} is {dict(when)}; use dict(epoch=N), dict(iteration=N) or a"
                " share of the training's steps"
            )
        (unit, count), *_ = when.items()
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ValueError(f"quant.schedule.{name} is dict({unit}={count!r}); use 0 or more")
        return {unit: count}
    if not 0.0 <= when <= 1.0:
        raise ValueError(
            f"quant.schedule.{name} is {when}; it is a share of the training's steps, from 0 (at"
            " once) to 1 (never), or dict(epoch=N) or dict(iteration=N)"
        )
    return float(when)


def _reached(when: When, progress: Progress) -> bool:
    if isinstance(when, Mapping):
        if "epoch" in when:
            return progress.epoch >= when["epoch"]
        return progress.iteration >= when["iteration"]
    return when < 1.0 and progress.share >= when
