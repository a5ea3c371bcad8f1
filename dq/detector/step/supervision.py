"""Those who watch over a training from outside: stop requests, the watchdog, clocks, guards."""

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
    """Where ranks that stand still write their stacks, and when they end.

    Attributes:
        stacks: This rank's file.
        limit_s: Seconds without a finished step after which the process ends.
    """

    stacks: Path
    limit_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """What `dq.detector.training.train.train` is watched by; all of it may be left out.

    Attributes:
        agreement: Through which a rank asks all to stop, or to write a checkpoint, after the same
            step.
        signals: Those of the operating system, which ask so.
        watch: For the watchdog.
        clock: Of the phases of a step.
        guards: The config's.
    """

    agreement: Agreement = field(default_factory=Agreement)
    signals: StopSignals | None = None
    watch: Watch | None = None
    clock: PhaseClock = field(default_factory=PhaseClock)
    guards: Guards = field(default_factory=Guards)
    _dogs: list[Watchdog] = field(default_factory=list)

    @contextmanager
    def over(self, what: str) -> Iterator[None]:
        """Watch over a training in the body; signals wait for the end of a step there.

        Every rank must call it.

        Args:
            what: What is about to begin, for the watchdog.
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
        """Expect no steps in the body, which may take long.

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
        """Tell the watchdog that something was finished."""
        for dog in self._dogs:
            dog.alive(what)

    def waiting_for(self, name: str, source: Iterable[T]) -> Iterator[T]:
        """Yield what a source yields, and count the time until it does as a phase."""
        items = iter(source)
        while True:
            with self.clock.phase(name):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item
