"""A port that nobody takes before the test does, although other tests run at the same time."""

from __future__ import annotations

import contextlib
import random
import socket

# The system takes the ports of connections from 32768 up, and Slurm's tests those from 20000 up.
RANGE = range(10_000, 20_000)


def free_port() -> int:
    """Return a port that nobody listens on, on any address of this machine; neither on the next.

    Binding port 0 would find one of those that every connection of another test may take.
    """
    chance = random.SystemRandom()  # Tests set the seeds of the others.
    while True:
        port = chance.choice(RANGE)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for number in (port, port + 1):
                stack.enter_context(socket.socket()).bind(("", number))
            return port
