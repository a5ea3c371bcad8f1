"""What one rank asks for, all ranks do after the same step, without a collective.

A rank that is to stop, or wants a checkpoint, must not do so alone. The step's own exchange of
gradients carries the agreement: at the end of step ``s`` the asking rank writes into the store that
it is due after step ``s + 1``, and only then goes on. No rank can end that later step before the
asking rank has joined it, so every rank that looks at the store then finds it.

A GPU's host ends a step before the device does, and to wait for the device in each step would leave
it idle. So before a look at the end of step ``s`` the host waits for the device's step ``s - 1``,
which is long done or soon will be: then every host has begun that step, and written before it
whatever it asked for. A request is due after step ``s + 2`` there.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from typing import Protocol

import torch
import torch.distributed as dist

from dq.dist.errors.lost import LostRankError, reason
from dq.dist.exchange import collectives
from dq.dist.rendezvous.sequence import open_meeting

log = logging.getLogger(__name__)
_COUNT = "count"


class Marks(Protocol):
    """What a host that runs ahead of its device knows of how far that is."""

    def pass_one(self) -> None:
        """Mark the step whose work was just handed on, and wait for the one that was before it."""


class CudaMarks:
    """Marks in a GPU's stream.

    Args:
        device: Of this rank.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.former: torch.cuda.Event | None = None

    def pass_one(self) -> None:
        """Mark the step, and wait for the one before; the device stays busy with this one."""
        mark = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it out
        mark.record(torch.cuda.current_stream(self.device))
        if self.former is not None:
            self.former.synchronize()
        self.former = mark


class Agreement:
    """Requests of single ranks that all act upon together.

    Every rank must create its own at the same point of the program.

    Args:
        check_every: Steps between two looks at the store.
        marks: Where the host runs ahead of its device; None where a step is done when it ends.
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
        """Ask for something; any rank may, at any time, in a signal handler too: nothing waits.

        Args:
            what: Its name; asked for twice before it is done, it is done once.
            why: Kept from the first who asks.
        """
        # No lock here: a signal handler may interrupt whoever holds it. Assignment is atomic.
        self._asked.setdefault(what, why)

    def due(self, step: int) -> Mapping[str, str]:
        """Return what all ranks are to do now, with the reasons; nearly always nothing.

        Every rank must call it at the end of each step in which ranks exchanged something.

        Args:
            step: Steps done, consecutive and equal on all ranks.

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
            raise LostRankError(
                "the store on which ranks meet is gone: the process that held it (torchrun, else"
                f" rank 0) has ended, and its log says why ({reason(error)})"
            ) from error
        return self._agreed.pop(step, {})

    def _take(self) -> dict[str, str]:
        taken: dict[str, str] = {}
        while self._asked:
            what, why = self._asked.popitem()
            taken[what] = why
        return taken

    def _publish(self, asked: Mapping[str, str], step: int) -> None:
        """Write requests under the next free numbers; each number is one rank's alone."""
        assert self._store is not None
        for what, why in asked.items():
            number = self._store.add("next", 1)
            self._store.set(f"request/{number}", json.dumps([step, what, why]))
            # Counted after it is written, so nobody reads one that is not there yet.
            self._store.add(_COUNT, 1)

    def _read(self) -> None:
        """Read requests that are new; one round trip when there are none."""
        assert self._store is not None
        count = self._store.add(_COUNT, 0)
        while self._seen < count:
            step, what, why = json.loads(self._store.get(f"request/{self._seen + 1}"))
            self._seen += 1
            self._agreed.setdefault(step, {}).setdefault(what, why)
