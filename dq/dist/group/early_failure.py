"""Report a rank that fails before the process group exists: one line, from one rank.

The main rank prints its own failure. It also prints the failure of another rank if it finds one in
the store when it arrives. A rank that fails writes its failure into the store and waits until it
has been printed. If nobody prints it, because there is no main rank or no way to reach it, the
rank prints the line itself.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from torch.distributed.distributed_c10d import Store

from dq.counted import counted
from dq.dist.errors.lost import LostRankError
from dq.dist.errors.notes import note
from dq.dist.rendezvous.environment import Environment
from dq.dist.rendezvous.meeting_place import is_agents_store, open_meeting_place
from dq.dist.rendezvous.store import pauses

_COUNT, _TOLD, _HEARD = "failures", "told", "heard"
# Ranks start at different times: one loads its libraries from disk, another from memory.
REACH_S, AGAIN_S, PATIENCE_S = 10.0, 15.0, 60.0
# How long the main rank waits for others to read the failure, because it may hold the store.
FAREWELL_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFailure:
    """Why a rank could not start.

    Attributes:
        rank: Its rank.
        mistake: Whether it is a mistake of the user.
        line: The message for the user.
    """

    rank: int
    mistake: bool
    line: str


class OtherRankStartError(LostRankError):
    """Another rank could not start."""


class OtherRankMistakeError(ValueError):
    """Another rank could not start, because of a mistake of the user."""


def report_failure(
    environment: Environment, failure: StartFailure, say: Callable[[], None]
) -> None:
    """Print a failure once over all ranks that can reach each other.

    Args:
        environment: Rank of this process.
        failure: The failure of this process.
        say: Prints it; called here unless another rank has printed this failure or its own.
    """
    if environment.world_size == 1:
        say()
    elif environment.is_main:
        _report_as_main_rank(environment, failure, say)
    else:
        _report_as_other_rank(environment, failure, say)


def _report_as_main_rank(
    environment: Environment, failure: StartFailure, say: Callable[[], None]
) -> None:
    if not is_agents_store():
        say()  # Without this rank no other ranks can have found each other.
    try:
        store = open_meeting_place(environment, FAREWELL_S)
        if is_agents_store() and claim(store):
            say()
        store.set(_TOLD, "")
        _write_failure(store, failure)
        if not is_agents_store():
            _wait_until_read(store, environment.world_size - 1, FAREWELL_S)
    except (RuntimeError, ValueError, OSError):
        if is_agents_store():
            say()


def _report_as_other_rank(
    environment: Environment, failure: StartFailure, say: Callable[[], None]
) -> None:
    end = time.monotonic() + PATIENCE_S
    store: Store | None = None
    said = False
    # If the first attempt fails, the line is printed here. The second attempt still writes the
    # failure into the store, so that a main rank that starts late does not wait for this rank.
    for limit_s in (REACH_S, AGAIN_S):
        try:
            store = store or open_meeting_place(environment, limit_s)
            _write_failure(store, failure)
            if not said and not _wait_until_reported(store, end) and claim(store):
                said = True
                say()
            store.set(_TOLD, "")
            return
        except (RuntimeError, ValueError, OSError):
            store = None
            if not said:
                said = True
                say()


def _wait_until_reported(store: Store, end: float) -> bool:
    """Wait until another rank has printed the failure; False if none has before ``end``."""
    for _ in pauses(0.2):
        if store.check([_TOLD]):
            store.add(_HEARD, 1)
            return True
        if time.monotonic() > end:
            break
    return False


def claim(store: Store) -> bool:
    """Return whether this rank is the first to print a failure at the start."""
    return bool(store.add("telling", 1) == 1)


def raise_reported_failure(store: Store, environment: Environment) -> None:
    """Raise if another rank has reported in the store that it cannot start.

    Raises:
        ValueError: Because of a mistake of the user; the message has the rank and the reason.
        RuntimeError: For another reason, with the same message.
    """
    number = store.add(_COUNT, 0)
    if not number:
        return
    found = [StartFailure(**json.loads(store.get(f"failure/{n + 1}"))) for n in range(number)]
    first = min(found, key=lambda failure: failure.rank)
    more = f" (and {counted(number - 1, 'more rank[s]')})" if number > 1 else ""
    line = f"rank {first.rank} of {environment.world_size}{more} could not begin: {first.line}"
    error = OtherRankMistakeError(line) if first.mistake else OtherRankStartError(line)
    # The main rank prints its own failure, and those of others if it is here.
    note(error, reported=not environment.is_main or not claim(store))
    store.add(_HEARD, 1)
    if environment.is_main:
        store.set(_TOLD, "")
        if not is_agents_store():
            _wait_until_read(store, environment.world_size, FAREWELL_S / 2)
    raise error


def _write_failure(store: Store, failure: StartFailure) -> None:
    number = store.add("next failure", 1)
    store.set(f"failure/{number}", json.dumps(asdict(failure)))
    # The counter is increased after the write, so nobody reads an entry that is not there yet.
    store.add(_COUNT, 1)


def _wait_until_read(store: Store, number: int, limit_s: float) -> None:
    """Wait until ``number`` ranks have read the failure: the store ends with this process."""
    end = time.monotonic() + limit_s
    with contextlib.suppress(RuntimeError):
        for _ in pauses(0.2):
            if store.add(_HEARD, 0) >= number or time.monotonic() > end:
                return
