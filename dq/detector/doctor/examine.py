"""Run all checks in another process, so that a check that crashes or hangs costs only its line."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from types import MappingProxyType

from dq.detector.doctor import hardware, machine, packages, services
from dq.detector.doctor.finding import Check, Finding, failure
from dq.error_text import typed_error_text

# In the order of the report; a check that needs a package comes after that package's own.
CHECKS: Mapping[str, Check] = MappingProxyType({
    "launcher": packages.launcher,
    "python": packages.python,
    "torch": packages.torch,
    "mmcv": packages.mmcv,
    "operators": packages.operators,
    "mmdet": packages.mmdet,
    "gpu": hardware.gpu,
    "nccl": hardware.collectives,
    "compilers": hardware.compilers,
    "kernels": hardware.kernels,
    "slurm": services.slurm,
    "wandb": services.wandb,
    "cpus": machine.cpus,
    "memory": machine.memory,
    "files": machine.files,
    "disk": machine.disk,
    "shm": machine.shm,
    "checkout": services.checkout,
})  # fmt: skip
# A first import may read gigabytes from a slow disk, and compiling takes a while.
LIMIT_S = 180.0


def examine(checks: Mapping[str, Check], limit_s: float = LIMIT_S) -> Iterator[tuple[str, Finding]]:
    """Yield the name and the finding of each check, in order, as soon as it is there.

    Args:
        checks: By name.
        limit_s: How long one check may take.
    """
    left = list(checks)
    while left:
        context = multiprocessing.get_context("fork")
        mine, its = context.Pipe(duplex=False)
        process = context.Process(
            target=_work, args=({name: checks[name] for name in left}, its), daemon=True
        )
        process.start()
        its.close()
        while left:
            found = _next(mine, process, limit_s)
            yield left.pop(0), found[0]
            if found[1]:
                process.kill()
                break
        mine.close()
        process.join()


def _next(mine: Connection, process: object, limit_s: float) -> tuple[Finding, bool]:
    """Return the next finding, and whether the process cannot go on."""
    assert isinstance(process, multiprocessing.context.ForkProcess)
    if not mine.poll(limit_s):
        mend = "another program may keep the machine busy, or a file system does not answer"
        return failure(f"no answer for {limit_s:.0f} s", mend), True
    try:
        return mine.recv(), False
    except (EOFError, OSError):
        process.join(limit_s)
        code = process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return failure(f"the process ended: {how}", "install the package of this line again"), True


def _work(checks: Mapping[str, Check], its: Connection) -> None:
    """Send the finding of each check; what libraries print is left out."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    with (
        open(os.devnull, "w") as silent,
        contextlib.redirect_stdout(silent),
        contextlib.redirect_stderr(silent),
    ):
        for check in checks.values():
            its.send(_careful(check))


def _careful(check: Check) -> Finding:
    try:
        return check()
    except ModuleNotFoundError as error:
        return failure(f"the package {error.name} is missing", packages.INSTALL)
    except BaseException as error:  # any package may be broken in any way
        words = typed_error_text(error)[:300]
        return failure(words, packages.INSTALL)
