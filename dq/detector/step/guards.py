"""What a training does when something goes wrong in the middle of it."""

from __future__ import annotations

from dataclasses import dataclass

NONFINITE = ("stop", "skip")
RUNAWAY = ("warn", "stop", "off")
WORSE = ("warn", "stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """The config's ``guards`` section.

    Attributes:
        nonfinite: A step whose gradients are NaN or infinite ends the training (``stop``), or is
            left out and named in the log (``skip``).
        max_skipped: So many steps left out in a row end the training all the same.
        compare_every: Steps between two comparisons of all ranks' weights; 0 for only at
            checkpoints.
        max_bad_images: So many training images may turn out unreadable in the middle of a training
            and are replaced by others; one more ends it.
        quiet_s: Seconds without a finished step, after which every rank writes its stack.
        straggler_above: A rank that takes so many times as long as the others is named in the log.
        runaway: A quantized training whose loss or weights run away is named in the log (``warn``),
            ended (``stop``), or not looked at (``off``).
        look_every: Steps between two such looks; there are more of them at the beginning.
        max_movement: So far may a layer's weights move, in terms of their norm at the beginning.
        max_loss_growth: So many times the loss of the beginning may the loss become.
        worse: A quantized training with a metric below that of its start says so (``warn``), or is
            ended, and ends with an exit code that says so (``stop``).
        max_drop: So much below the start, of a metric from 0 to 1, is not worth either.
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
