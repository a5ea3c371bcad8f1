"""The process that talks to W&B, so that a training never waits for W&B or fails because of it.

It reads commands as JSON lines from its standard input, and the runs from their folders. When the
training is killed, the input ends: what was written is still sent, and the run is marked as failed.
Messages for the user are printed on its standard output, one per line.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from dq.tracking.wandb_copy.mirror import Limits, Mirror

POLL_S = 1.0
# The folder for temporary files of a relay, created by the process that starts it.
SCRATCH = "dq-wandb-"
KILLED = 137


def main() -> int:
    """Run until the input ends."""
    # A scheduler signals every process of a job; the training ends this one when it is done.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # W&B prints too; that goes to the log, together with its errors.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            answers.write(" ".join(line.split()) + "\n")

    orders: queue.Queue[dict[str, Any] | None] = queue.Queue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    mirrors: dict[str, Mirror] = {}
    ended: list[Mirror] = []
    while True:
        try:
            order = orders.get(timeout=POLL_S)
        except queue.Empty:
            for mirror in mirrors.values():
                mirror.pump()
            continue
        if order is None:
            break
        folder = str(order["folder"])
        if order["do"] == "begin":
            limits = Limits(init_s=order["init_s"], finish_s=order["finish_s"])
            mirrors[folder] = Mirror(Path(folder), order["mode"], limits, say)
            mirrors[folder].open()
        elif folder in mirrors:
            ended.append(mirrors.pop(folder))
            ended[-1].close(int(order["exit_code"]))
    for mirror in mirrors.values():
        mirror.close(KILLED)
    if "wandb" in sys.modules:
        import wandb

        # W&B's service writes the last part of an offline run after the run has ended.
        with contextlib.suppress(Exception):
            wandb.teardown()
    for mirror in [*ended, *mirrors.values()]:
        mirror.mark()
    say("done")
    return 0


def _listen(orders: queue.Queue[dict[str, Any] | None]) -> None:
    """Read commands until the input ends; then limit the remaining life of this process."""
    finish_s = 30.0
    for line in sys.stdin:
        order = json.loads(line)
        finish_s = order.get("finish_s", finish_s)
        orders.put(order)
    orders.put(None)
    threading.Event().wait(2 * finish_s + 5.0)
    end_at_once()


def remove_scratch() -> None:
    """Remove the temporary files of this relay, which may have outlived its starter."""
    folder = Path(os.environ.get("TMPDIR", ""))
    if folder.name.startswith(SCRATCH):
        shutil.rmtree(folder, ignore_errors=True)


def end_at_once() -> None:
    """End W&B's service and this process immediately."""
    for pid in children(os.getpid()):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    remove_scratch()
    os._exit(1)


def children(pid: int) -> list[int]:
    """Return the child processes of this one, on Linux."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(text) for text in path.read_text().split()]
    return found


if __name__ == "__main__":
    code = main()
    remove_scratch()
    sys.stdout.flush()
    os._exit(code)
