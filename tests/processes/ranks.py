"""Run a function of a test in several real processes that meet through a file; never hang.

The processes are forked from a server that has torch and mmdet loaded, so each starts in a fraction
of a second. They have the environment at the server's start: set variables inside the function.
"""

import contextlib
import importlib.util
import inspect
import math
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_GRACE_S = 3.0
PRELOADED = ("torch", "torch.distributed", "torch._dynamo", "mmdet.apis", "pytest")
_processes = multiprocessing.get_context("forkserver")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one rank ended: with a result, or with an error as text."""

    rank: int
    result: Any = None
    error: str | None = None


class RanksError(AssertionError):
    """Some ranks raised, died or hung; the text names them and how."""


def run_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, limit_s: float = 60.0
) -> list[Any]:
    """Run `function(*args)` in every rank of a gloo group, and return the results in rank order.

    Args:
        function: A module-level function of a test file.
        world_size: Number of processes.
        args: Picklable arguments, the same for every rank.
        limit_s: Seconds after which hanging ranks are killed.

    Raises:
        RanksError: A rank raised, died or hung; after the first, the others get three seconds.
    """
    outcomes = rank_outcomes(function, world_size, *args, limit_s=limit_s, grace_s=_GRACE_S)
    failures = [f"rank {outcome.rank}: {outcome.error}" for outcome in outcomes if outcome.error]
    if failures:
        raise RanksError("\n".join(failures))
    return [outcome.result for outcome in outcomes]


def rank_outcomes(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    limit_s: float = 60.0,
    grace_s: float = math.inf,
    group: bool = True,
    group_timeout_s: float | None = None,
) -> list[Outcome]:
    """Like `run_ranks`, but return how each rank ended, for tests that kill some.

    Args:
        function: A module-level function of a test file.
        world_size: Number of processes.
        args: Picklable arguments, the same for every rank.
        limit_s: Seconds after which hanging ranks are killed.
        grace_s: Seconds that the others get after a rank has failed.
        group: Create a process group; without one the function gets RANK and WORLD_SIZE in its
            environment.
        group_timeout_s: Time-out of the group's collectives; `limit_s` by default.
    """
    if "<" in function.__qualname__ or "." in function.__qualname__:
        raise ValueError(f"{function.__qualname__} must be a module-level function")
    source = (function.__module__, str(inspect.getsourcefile(function)), function.__qualname__)
    _processes.set_forkserver_preload([*PRELOADED])
    processes: list[BaseProcess] = []
    pipes: list[Connection] = []
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        meeting = f"file://{folder}/store" if group else None
        try:
            for rank in range(world_size):
                ours, theirs = _processes.Pipe()
                timeout_s = group_timeout_s or limit_s
                order = (rank, world_size, meeting, timeout_s, limit_s, source, pickle.dumps(args))
                process = _processes.Process(
                    target=_be_rank, args=(theirs, *order), name=f"rank {rank}", daemon=True
                )
                process.start()
                theirs.close()
                processes.append(process)
                pipes.append(ours)
            return _collect(pipes, processes, limit_s, grace_s)
        finally:
            for pipe in pipes:
                pipe.close()  # The rank ends when its pipe does.
            for process in processes:
                process.join(0.5)
                if process.is_alive():
                    process.kill()
                    process.join()


def _collect(
    pipes: list[Connection], processes: list[BaseProcess], limit_s: float, grace_s: float
) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {}
    end = time.monotonic() + limit_s
    reason = f"was stuck, killed after {limit_s:g} s"
    while len(outcomes) < len(pipes):
        waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in outcomes]
        ready = wait(waiting, max(0.0, end - time.monotonic()))
        if not ready:
            break
        for pipe in ready:
            rank = next(rank for rank, other in enumerate(pipes) if other is pipe)
            outcomes[rank] = _receive(rank, pipes[rank], processes[rank])
            if outcomes[rank].error is not None and time.monotonic() + grace_s < end:
                end = time.monotonic() + grace_s
                reason = f"was stuck, killed {grace_s:g} s after the failure of rank {rank}"
    ranks = range(len(pipes))
    return [outcomes.get(rank, Outcome(rank=rank, error=reason)) for rank in ranks]


def _receive(rank: int, pipe: Connection, process: BaseProcess) -> Outcome:
    try:
        result, error = pickle.loads(pipe.recv_bytes())
    except EOFError:
        process.join(5)
        return Outcome(rank=rank, error=f"died with exit code {process.exitcode}")
    return Outcome(rank=rank, result=result, error=error)


def _be_rank(
    pipe: Connection,
    rank: int,
    world_size: int,
    meeting: str | None,
    timeout_s: float,
    limit_s: float,
    source: tuple[str, str, str],
    args: bytes,
) -> None:
    """Run in the child: do the work, send the result, stay until the test has everything."""
    signal.alarm(math.ceil(limit_s) + 30)  # Ends this process even if the test itself is gone.
    try:
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        os.environ.update(GLOO_SOCKET_IFNAME="lo", RANK=str(rank), WORLD_SIZE=str(world_size))
        if meeting is not None:
            dist.init_process_group(
                "gloo",
                init_method=meeting,
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=timeout_s),
            )
        message = pickle.dumps((_load(*source)(*pickle.loads(args)), None))
    except BaseException:
        message = pickle.dumps((None, traceback.format_exc()))
    with contextlib.suppress(EOFError, OSError):
        pipe.send_bytes(message)
        pipe.recv_bytes()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _load(module_name: str, path: str, name: str) -> Callable[..., Any]:
    """Load the function from its file, under the name that the test's pickles expect."""
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, Path(path))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
    function: Callable[..., Any] = getattr(sys.modules[module_name], name)
    return function
