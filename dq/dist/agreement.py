"""What one rank asks for, all ranks do after the same step, without a collective.

A rank that is to stop, or wants a checkpoint, must not do so alone. The step's own exchange of
gradients carries the agreement: at the end of step ``s`` the asking rank writes into the store that
it is due after step ``s + check_every``, and only then goes on. No rank can end that later step
before the asking rank has joined it, so every rank that looks at the store then finds it.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping

import torch
import torch.distributed as dist

from dq.dist import collectives
from dq.dist.lost import LostRankError, reason
from dq.dist.sequence import open_meeting

log = logging.getLogger(__name__)
_COUNT = "count"


class Agreement:
    """Requests of single ranks that all act upon together.

    Every rank must create its own at the same point of the program.

    Args:
        check_every: Steps between two looks at the store; 1 on a CPU. A GPU's host runs ahead of
            it, so a look waits for the device, and should be rarer.
        device: Of this rank.
    """

    def __init__(self, *, check_every: int = 1, device: torch.device | None = None) -> None:
        self.check_every, self.device = check_every, device
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
        if step % self.check_every:
            return {}
        if self._store is None:
            return self._take()
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        try:
            asked = self._take()
            if asked:
                self._publish(asked, step + self.check_every)
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
