"""Worker processes of a data loader; a lost one can be replaced, and none outlives its rank.

torch's DataLoader raises in a SIGCHLD handler, at any line that the rank is executing, for example
within a backward pass. Here torch watches the processes only while the rank waits for a batch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import cv2
import torch
from torch._C import _remove_worker_pids, _set_worker_pids
from torch.utils.data import DataLoader

_JOIN_S = 5.0
_DEATH = "DataLoader worker (pid"
_TIMED_OUT = "DataLoader timed out"


class WorkerLostError(RuntimeError):
    """A worker process ended too early; the text says how."""


def init_worker(number: int, *, opencv_threads: int = 0) -> None:
    """Prepare a worker process: it survives the signals that its rank handles, and uses one thread.

    Args:
        number: Number of the process.
        opencv_threads: The config's value; a worker that is not forked does not inherit it.
    """
    from dq.dist.watch.signals import ignore_first_sigterm

    ignore_first_sigterm()
    cv2.setNumThreads(opencv_threads)
    torch.set_num_threads(1)


def start(loader: DataLoader[Any]) -> Any:
    """Start the worker processes and return torch's iterator over ``loader``.

    Raises:
        WorkerLostError: A worker process has ended already.
    """
    try:
        iterator: Any = loader._get_iterator()
    except RuntimeError as error:
        if str(error).startswith(_DEATH):
            raise WorkerLostError(str(error)) from error
        raise
    _forget(iterator)
    iterator._worker_pids_set = False
    # At exit, multiprocessing sends SIGTERM and waits forever, but workers may ignore it: kill
    # them.
    weakref.finalize(iterator, _kill, _workers_of(iterator), os.getpid())
    return iterator


def restart(iterator: Any, loader: DataLoader[Any]) -> None:
    """Restart persistent worker processes with the current batches of ``loader``.

    Raises:
        WorkerLostError: A worker process has ended.
    """
    _watched(iterator, lambda: iterator._reset(loader))


def next_batch(iterator: Any) -> Any:
    """Return the next batch.

    Raises:
        WorkerLostError: A worker process has ended.
        RuntimeError: No batch came within the loader's timeout; the workers are stopped.
    """
    return _watched(iterator, lambda: next(iterator))


def stop(iterator: Any) -> None:
    """Stop the worker processes, which may be busy."""
    workers = _workers_of(iterator)
    if not all(worker.is_alive() for worker in workers):
        kill(iterator)
    elif workers:
        iterator._shutdown_workers()
        _kill(workers, os.getpid())


def kill(iterator: Any) -> None:
    """Kill all worker processes after one was lost.

    torch's own shutdown takes locks that a killed process may still hold.
    """
    _forget(iterator)
    iterator._shutdown = True
    _kill(iterator._workers, os.getpid())
    for queue in iterator._index_queues:
        queue.cancel_join_thread()
        queue.close()
    if hasattr(iterator, "_pin_memory_thread_done_event"):
        iterator._pin_memory_thread_done_event.set()


def _watched(iterator: Any, action: Callable[[], Any]) -> Any:
    """Run an action that needs the workers; distinguish their death from their errors."""
    workers = _workers_of(iterator)
    if not workers:
        return action()
    try:
        if not all(worker.is_alive() for worker in workers):
            raise WorkerLostError(_how_lost(workers))
        _set_worker_pids(id(iterator), tuple(worker.pid or 0 for worker in workers))
        return action()
    except (WorkerLostError, StopIteration):
        raise
    except Exception as error:
        if str(error).startswith(_TIMED_OUT):
            kill(iterator)
            raise RuntimeError(
                f"no worker process returned a batch within {iterator._timeout:g} s"
                " (data.train_dataloader.timeout); is the disk of the images slow or gone?"
            ) from error
        if str(error).startswith(_DEATH) or not all(worker.is_alive() for worker in workers):
            raise WorkerLostError(_how_lost(workers)) from error
        raise
    finally:
        _forget(iterator)


def _workers_of(iterator: Any) -> Sequence[BaseProcess]:
    return getattr(iterator, "_workers", ())


def _how_lost(workers: Sequence[BaseProcess]) -> str:
    """Describe how the first process that is no longer alive ended."""
    # Its pipes may close a moment before its exit code is available.
    wait([worker.sentinel for worker in workers], timeout=1.0)
    for worker in workers:
        code = worker.exitcode
        if code is not None:
            how = f"exit code {code}" if code >= 0 else f"signal {-code}, {signal.strsignal(-code)}"
            return f"process {worker.pid}: {how}"
    return "process unknown"


def _forget(iterator: Any) -> None:
    """Stop torch from raising for the death of the iterator's processes."""
    with contextlib.suppress(ValueError):
        _remove_worker_pids(id(iterator))


def _kill(workers: Sequence[BaseProcess], owner: int) -> None:
    # A process forked from the rank has a copy of the iterator, but must not kill anything.
    if os.getpid() != owner:
        return
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(_JOIN_S)
