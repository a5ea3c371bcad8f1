"""What a training does when something goes wrong in the middle of it."""

from __future__ import annotations

from dataclasses import dataclass

NONFINITE = ("stop", "skip")


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
    """

    nonfinite: str = "stop"
    max_skipped: int = 10
    compare_every: int = 500
    max_bad_images: int = 10
    quiet_s: float = 300.0
    straggler_above: float = 1.5

    def __post_init__(self) -> None:
        if self.nonfinite not in NONFINITE:
            raise ValueError(f"guards.nonfinite is {self.nonfinite!r}; use 'stop' or 'skip'")
        for name, least in (("max_skipped", 1), ("compare_every", 0), ("max_bad_images", 0)):
            given = getattr(self, name)
            if not isinstance(given, int) or given < least:
                raise ValueError(f"guards.{name} is {given!r}; use a whole number from {least}")
        for name, above in (("quiet_s", 0.0), ("straggler_above", 1.0)):
            given = getattr(self, name)
            if not given > above:
                raise ValueError(f"guards.{name} is {given}; it must be more than {above:g}")
