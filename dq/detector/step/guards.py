"""Settings for problems during a training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

OFF = "off"


def _one_of(default: str, *others: str, hook: str | None = None) -> Any:
    """Return a field with one of these values.

    Args:
        default: The first of them.
        others: The rest; ``off`` for no hook.
        hook: ``module:class`` of a hook in `dq.detector.hooks`, made with the guards. Its PRIORITY
            is its place among the hooks, FLOAT_TOO says whether it guards a float training too.
    """
    return field(default=default, metadata={"known": (default, *others), "hook": hook})


def _at_least(default: int, least: int) -> Any:
    return field(default=default, metadata={"least": least})


def _above(default: float, limit: float) -> Any:
    return field(default=default, metadata={"above": limit})


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
        runaway: A quantized training whose loss, weights or learned scales diverge is logged
            (``warn``), ended (``stop``), or not checked (``off``).
        look_every: Steps between these checks; they are more frequent at the beginning.
        max_movement: Maximum change of a layer's weights, relative to their initial norm, and of
            learned scales, relative to their initial values.
        max_update: The same for a single step, which is tried before a quantized training; learned
            scales may move 20 times as far.
        max_loss_growth: Maximum loss, relative to the initial loss.
        worse: A quantized training whose metric is below that at its start is logged (``warn``), or
            ended with its own exit code (``stop``).
        max_drop: Decrease of a metric (0 to 1) that is still accepted.
    """

    nonfinite: str = _one_of("stop", "skip")
    max_skipped: int = _at_least(10, 1)
    compare_every: int = _at_least(500, 0)
    max_bad_images: int = _at_least(10, 0)
    quiet_s: float = _above(300.0, 0.0)
    straggler_above: float = _above(1.5, 1.0)
    runaway: str = _one_of("warn", "stop", OFF, hook="runaway:RunawayHook")
    look_every: int = _at_least(50, 1)
    max_movement: float = _above(1.0, 0.0)
    max_update: float = _above(0.03, 0.0)
    max_loss_growth: float = _above(3.0, 1.0)
    worse: str = _one_of("warn", "stop")
    max_drop: float = _above(0.01, -1.0)

    def __post_init__(self) -> None:
        for each in fields(self):
            name, given, limits = each.name, getattr(self, each.name), each.metadata
            if "known" in limits and given not in limits["known"]:
                known = " or ".join(map(repr, limits["known"]))
                raise ValueError(f"guards.{name} is {given!r}; use {known}")
            if "least" in limits and (not isinstance(given, int) or given < limits["least"]):
                least = limits["least"]
                raise ValueError(f"guards.{name} is {given!r}; use a whole number from {least}")
            above = limits.get("above")
            if above is not None and not (isinstance(given, int | float) and given > above):
                raise ValueError(f"guards.{name} is {given!r}; it must be more than {above:g}")

    def hooks(self) -> Iterator[str]:
        """Yield ``module:class`` of the hooks of all guards that are not off."""
        for each in fields(self):
            hook = each.metadata.get("hook")
            if hook and getattr(self, each.name) != OFF:
                yield hook
