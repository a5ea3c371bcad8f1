"""Count in a file while the parent lives; a separate program, which the parent's GIL cannot stop.

Started as ``python -I -S beat.py FD EVERY_S`` with a pipe as standard input that only the parent
holds. It imports only the standard library, so it starts in milliseconds.
"""

import contextlib
import os
import select
import signal
import sys

DIGITS = 20


def beat(file: int, every_s: float) -> None:
    """Write 1, 2, 3, ... at the start of the file until the parent ends or closes the pipe."""
    parent = os.getppid()
    number = 0
    while os.getppid() == parent:
        number += 1
        # An error, such as a full disk or an unreachable server, may be gone the next time.
        with contextlib.suppress(OSError):
            os.pwrite(file, b"%0*d" % (DIGITS, number), 0)
            os.fsync(file)
        if select.select([sys.stdin], [], [], every_s)[0]:
            return


if __name__ == "__main__":
    # Slurm and terminals signal every process of a job, and this one must outlive its parent.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(each, signal.SIG_IGN)
    beat(int(sys.argv[1]), float(sys.argv[2]))
