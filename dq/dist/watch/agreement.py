"""Let all ranks act on a request of one rank after the same step, without a collective.

A rank that is to stop, or wants a checkpoint, must not do so alone. The gradient exchange of each
step makes the agreement possible: at the end of step ``s`` the requesting rank writes into the
store that the request is due after step ``s + 1``, and only then continues. No rank can finish that
step before the requesting rank has joined it, so every rank that reads the store then finds it.

With a GPU the host finishes a step before the device does, and waiting for the device in each step
would leave it idle. So before the host reads the store at the end of step ``s``, it waits for the
device's step ``s - 1``, which is usually finished. Then every host has started that step and has
already written its requests. So with a GPU a request is due after step ``s + 2``.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from typing import Protocol

import torch
import torch.distributed as dist

from dq.dist.errors.lost import lost_store
from dq.dist.exchange import collectives
from dq.dist.rendezvous.sequence import open_meeting

log = logging.getLogger(__name__)
_COUNT = "count"


class Marks(Protocol):
    """How a host that runs ahead of its device limits its lead."""

    def pass_one(self) -> None:
        """Mark the step that was just queued, and wait for the one before it."""


class CudaMarks:
    """Events in a GPU's stream.

    Args:
        device: The device of this rank.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.former: torch.cuda.Event | None = None

    def pass_one(self) -> None:
        """Record an event, and wait for the previous one; the device stays busy with this step."""
        mark = torch.cuda.Event()  # type: ignore[no-untyped-call]  # Not typed in torch.
        mark.record(torch.cuda.current_stream(self.device))
        if self.former is not None:
            self.former.synchronize()
        self.former = mark


class Agreement:
    """Requests of single ranks that all ranks act on together.

    Every rank must create its own at the same point of the program.

    Args:
        check_every: Steps between two reads of the store.
        marks: For a host that runs ahead of its device; None if a step is finished when it returns.
    """

    def __init__(self, *, check_every: int = 1, marks: Marks | None = None) -> None:
        self.check_every, self.marks = check_every, marks
        self.delay = check_every * (1 if marks is None else 2)
        self._asked: dict[str, str] = {}
        self._lock = threading.Lock()
        self._seen = 0
        self._agreed: dict[int, dict[str, str]] = {}
        alone = collectives.world_size() == 1
        self._store = None if alone else open_meeting("agreement")

    def ask(self, what: str, why: str = "") -> None:
        """Request something; any rank may, at any time, also in a signal handler: nothing waits.

        Args:
            what: Its name; two requests of one name before it is due count as one.
            why: The reason; that of the first request is kept.
        """
        # No lock here: a signal handler may interrupt its holder. Assignment is atomic.
        self._asked.setdefault(what, why)

    def due(self, step: int) -> Mapping[str, str]:
        """Return what all ranks must do now, with the reasons; usually nothing.

        Every rank must call it at the end of each step in which ranks exchanged something.

        Args:
            step: Number of finished steps, consecutive and equal on all ranks.

        Raises:
            RuntimeError: The store is gone.
        """
        if self._store is None:
            return self._take()
        if self.marks is not None:
            self.marks.pass_one()
        if step % self.check_every:
            return {}
        try:
            asked = self._take()
            if asked:
                self._publish(asked, step + self.delay)
            self._read()
        except dist.DistError as error:
            raise lost_store(error) from error
        return self._agreed.pop(step, {})

    def _take(self) -> dict[str, str]:
        taken: dict[str, str] = {}
        while self._asked:
            what, why = self._asked.popitem()
            taken[what] = why
        return taken

    def _publish(self, asked: Mapping[str, str], step: int) -> None:
        """Write requests under the next free numbers; each number belongs to one rank."""
        assert self._store is not None
        for what, why in asked.items():
            number = self._store.add("next", 1)
            self._store.set(f"request/{number}", json.dumps([step, what, why]))
            # The counter is increased after the write, so nobody reads a missing entry.
            self._store.add(_COUNT, 1)

    def _read(self) -> None:
        """Read new requests; one round trip when there are none."""
        assert self._store is not None
        count = self._store.add(_COUNT, 0)
        while self._seen < count:
            step, what, why = json.loads(self._store.get(f"request/{self._seen + 1}"))
            self._seen += 1
            self._agreed.setdefault(step, {}).setdefault(what, why)
