"""What a rank says that fails before the ranks have met: one line, from one rank, and never none.

The main rank prints its own failure, and that of another rank which it finds when it comes to the
meeting place. A rank that fails leaves word there, and waits until somebody has told it; where
nobody does, for there is no main rank, or no way to it, it prints the line itself.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from torch.distributed.distributed_c10d import Store

from dq.dist.errors.lost import LostRankError
from dq.dist.rendezvous.environment import Environment
from dq.dist.rendezvous.meeting_place import is_of_agent, open_meeting_place
from dq.dist.rendezvous.store import pauses

_COUNT, _TOLD, _HEARD = "failures", "told", "heard"
# Ranks begin at different times: one reads its libraries from a disk that the next has in memory.
REACH_S, AGAIN_S, PATIENCE_S = 10.0, 15.0, 60.0
# What the main rank waits for others to hear, whose store it may hold.
FAREWELL_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyFailure:
    """Why a rank could not begin.

    Attributes:
        rank: Its number.
        mistake: Whether it is the user's mistake.
        line: What the user is to read.
    """

    rank: int
    mistake: bool
    line: str


class NotBegunError(LostRankError):
    """Another rank could not begin.

    Attributes:
        reported: Somebody else prints it.
    """

    reported = False


class MistakeElsewhereError(ValueError):
    """Another rank could not begin, by the user's mistake.

    Attributes:
        reported: Somebody else prints it.
    """

    reported = False


def tell(environment: Environment, failure: EarlyFailure, say: Callable[[], None]) -> None:
    """Let a failure be printed once over all ranks that can hear of each other.

    Args:
        environment: The place of this process.
        failure: Its own.
        say: Prints it; called here unless another rank has told this or its own failure.
    """
    if environment.world_size == 1:
        say()
    elif environment.is_main:
        _tell_as_main_rank(environment, failure, say)
    else:
        _tell_as_other_rank(environment, failure, say)


def _tell_as_main_rank(
    environment: Environment, failure: EarlyFailure, say: Callable[[], None]
) -> None:
    if not is_of_agent():
        say()  # Nobody can have met anybody without this rank.
    try:
        store = open_meeting_place(environment, FAREWELL_S)
        if is_of_agent() and claim(store):
            say()
        store.set(_TOLD, "")
        _leave_word(store, failure)
        if not is_of_agent():
            _await_hearing(store, environment.world_size - 1, FAREWELL_S)
    except (RuntimeError, ValueError, OSError):
        if is_of_agent():
            say()


def _tell_as_other_rank(
    environment: Environment, failure: EarlyFailure, say: Callable[[], None]
) -> None:
    end = time.monotonic() + PATIENCE_S
    store: Store | None = None
    said = False
    # Said after the first, tried once more: a main rank that begins late need not wait for this.
    for limit_s in (REACH_S, AGAIN_S):
        try:
            store = store or open_meeting_place(environment, limit_s)
            _leave_word(store, failure)
            if not said and not _is_told(store, end) and claim(store):
                said = True
                say()
            store.set(_TOLD, "")
            return
        except (RuntimeError, ValueError, OSError):
            store = None
            if not said:
                said = True
                say()


def _is_told(store: Store, end: float) -> bool:
    """Wait until somebody has told the failure; False where nobody has until the end."""
    for _ in pauses(0.2):
        if store.check([_TOLD]):
            store.add(_HEARD, 1)
            return True
        if time.monotonic() > end:
            break
    return False


def claim(store: Store) -> bool:
    """Whether this rank is the first that is to print a failure to begin."""
    return bool(store.add("telling", 1) == 1)


def refuse_failures(store: Store, environment: Environment) -> None:
    """Raise where another rank has left word that it cannot begin; for ranks that wait for it.

    Raises:
        ValueError: By the user's mistake; the line names the rank and its reason.
        RuntimeError: For another reason, likewise.
    """
    number = store.add(_COUNT, 0)
    if not number:
        return
    found = [EarlyFailure(**json.loads(store.get(f"failure/{n + 1}"))) for n in range(number)]
    first = min(found, key=lambda failure: failure.rank)
    more = f" (and {number - 1} more ranks)" if number > 1 else ""
    line = f"rank {first.rank} of {environment.world_size}{more} could not begin: {first.line}"
    error = MistakeElsewhereError(line) if first.mistake else NotBegunError(line)
    # The main rank's own failure is told by it; that of others, by it too if it is here.
    error.reported = not environment.is_main or not claim(store)
    store.add(_HEARD, 1)
    if environment.is_main:
        store.set(_TOLD, "")
        if not is_of_agent():
            _await_hearing(store, environment.world_size, FAREWELL_S / 2)
    raise error


def _leave_word(store: Store, failure: EarlyFailure) -> None:
    number = store.add("next failure", 1)
    store.set(f"failure/{number}", json.dumps(asdict(failure)))
    # Counted after it is written, so nobody reads one that is not there yet.
    store.add(_COUNT, 1)


def _await_hearing(store: Store, number: int, limit_s: float) -> None:
    """Wait until so many ranks have heard, for the store ends with this process."""
    end = time.monotonic() + limit_s
    with contextlib.suppress(RuntimeError):
        for _ in pauses(0.2):
            if store.add(_HEARD, 0) >= number or time.monotonic() > end:
                return
