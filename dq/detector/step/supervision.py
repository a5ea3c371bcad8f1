"""Supervision of a training: stop requests, the watchdog, clocks, guards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from dq.detector.step.guards import Guards
from dq.dist.watch.agreement import Agreement
from dq.dist.watch.signals import StopSignals
from dq.dist.watch.straggler import PhaseClock
from dq.dist.watch.watchdog import Watchdog, watchdog

T = TypeVar("T")
LOADING = "loading data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Settings of the watchdog for ranks that hang.

    Attributes:
        stacks: File for this rank's stacks.
        limit_s: Seconds without a finished step after which the process ends.
    """

    stacks: Path
    limit_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """Supervision of `dq.detector.training.train.train`; every part is optional.

    Attributes:
        agreement: Lets all ranks stop, or write a checkpoint, after the same step on the request of
            one.
        signals: Handler of the operating system's signals that request this.
        watch: Settings of the watchdog.
        clock: Clock of the phases of a step.
        guards: The config's guards.
    """

    agreement: Agreement = field(default_factory=Agreement)
    signals: StopSignals | None = None
    watch: Watch | None = None
    clock: PhaseClock = field(default_factory=PhaseClock)
    guards: Guards = field(default_factory=Guards)
    _dogs: list[Watchdog] = field(default_factory=list)

    @contextmanager
    def over(self, what: str) -> Iterator[None]:
        """Supervise a training in the body, where signals take effect at the end of a step.

        Every rank must call it.

        Args:
            what: Name of the first activity, for the watchdog.
        """
        with ExitStack() as stack:
            if self.signals is not None:
                stack.enter_context(self.signals.deferred(self.agreement))
            if self.watch is not None:
                dog = stack.enter_context(
                    watchdog(
                        quiet_s=self.guards.quiet_s,
                        limit_s=self.watch.limit_s,
                        stacks=self.watch.stacks,
                    )
                )
                self._dogs.append(dog)
                stack.callback(self._dogs.clear)
                stack.enter_context(dog.watching(what))
            yield

    @contextmanager
    def aside(self, *, may_stop: bool) -> Iterator[None]:
        """Pause the supervision of steps in the body, which may take long.

        Args:
            may_stop: Whether a signal ends it at once.
        """
        with ExitStack() as stack:
            if self.signals is not None and may_stop:
                stack.enter_context(self.signals.at_once())
            for dog in self._dogs:
                stack.enter_context(dog.paused())
            yield

    def alive(self, what: str) -> None:
        """Report progress to the watchdog."""
        for dog in self._dogs:
            dog.alive(what)

    def waiting_for(self, name: str, source: Iterable[T]) -> Iterator[T]:
        """Yield the items of a source, and count the time to wait for each as a phase."""
        items = iter(source)
        while True:
            with self.clock.phase(name):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item
