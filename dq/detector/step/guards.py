"""Settings for problems during a training."""

from __future__ import annotations

from dataclasses import dataclass

NONFINITE = ("stop", "skip")
RUNAWAY = ("warn", "stop", "off")
WORSE = ("warn", "stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """The config's ``guards`` section.

    Attributes:
        nonfinite: A step with NaN or infinite gradients ends the training (``stop``), or is skipped
            with a line in the log (``skip``).
        max_skipped: Number of steps skipped in a row that still ends the training.
        compare_every: Steps between comparisons of the weights on all ranks; 0 compares only at
            checkpoints.
        max_bad_images: Number of unreadable training images that are replaced by others during a
            training; one more ends it.
        quiet_s: Seconds without a finished step after which every rank writes its stack.
        straggler_above: A rank that takes this many times as long as the others is logged.
        runaway: A quantized training whose loss or weights diverge is logged (``warn``), ended
            (``stop``), or not checked (``off``).
        look_every: Steps between these checks; they are more frequent at the beginning.
        max_movement: Maximum change of a layer's weights, relative to their initial norm.
        max_loss_growth: Maximum loss, relative to the initial loss.
        worse: A quantized training whose metric is below that at its start is logged (``warn``), or
            ended with its own exit code (``stop``).
        max_drop: Decrease of a metric (0 to 1) that is still accepted.
    """

    nonfinite: str = "stop"
    max_skipped: int = 10
    compare_every: int = 500
    max_bad_images: int = 10
    quiet_s: float = 300.0
    straggler_above: float = 1.5
    runaway: str = "warn"
    look_every: int = 50
    max_movement: float = 1.0
    max_loss_growth: float = 3.0
    worse: str = "warn"
    max_drop: float = 0.01

    def __post_init__(self) -> None:
        for name, known in (("nonfinite", NONFINITE), ("runaway", RUNAWAY), ("worse", WORSE)):
            given = getattr(self, name)
            if given not in known:
                raise ValueError(f"guards.{name} is {given!r}; use {' or '.join(map(repr, known))}")
        for name, least in (
            ("max_skipped", 1),
            ("compare_every", 0),
            ("max_bad_images", 0),
            ("look_every", 1),
        ):
            given = getattr(self, name)
            if not isinstance(given, int) or given < least:
                raise ValueError(f"guards.{name} is {given!r}; use a whole number from {least}")
        for name, above in (
            ("quiet_s", 0.0),
            ("straggler_above", 1.0),
            ("max_movement", 0.0),
            ("max_loss_growth", 1.0),
            ("max_drop", -1.0),
        ):
            given = getattr(self, name)
            if not given > above:
                raise ValueError(f"guards.{name} is {given}; it must be more than {above:g}")
