"""Loader processes whose death is noticed where it can be mended, and which never outlive a rank.

torch's loader raises from a handler of SIGCHLD, at whatever line the rank happens to be: in the
midst of a backward pass, say. Here torch knows of the processes only while a batch is waited for.
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
    """A loader process ended before its work was done; the text says how."""


def begin_worker(number: int, *, opencv_threads: int = 0) -> None:
    """Prepare a loader process: it outlives the signals its rank handles, and uses one thread.

    Args:
        number: Of the process.
        opencv_threads: What the config says of OpenCV's; a process that is not forked from its
            rank would not know.
    """
    from dq.dist.watch.signals import ignore_first_sigterm

    ignore_first_sigterm()
    cv2.setNumThreads(opencv_threads)
    torch.set_num_threads(1)


def start(loader: DataLoader[Any]) -> Any:
    """Return torch's iterator over ``loader``, its processes started.

    Raises:
        WorkerLostError: One of them has ended already.
    """
    try:
        iterator: Any = loader._get_iterator()
    except RuntimeError as error:
        if str(error).startswith(_DEATH):
            raise WorkerLostError(str(error)) from error
        raise
    _forget(iterator)
    iterator._worker_pids_set = False
    # At exit multiprocessing sends SIGTERM and waits for ever; these processes may be spared it.
    weakref.finalize(iterator, _kill, _workers_of(iterator), os.getpid())
    return iterator


def restart(iterator: Any, loader: DataLoader[Any]) -> None:
    """Let persistent processes begin with what ``loader`` is to yield now.

    Raises:
        WorkerLostError: One of them has ended.
    """
    _watched(iterator, lambda: iterator._reset(loader))


def take(iterator: Any) -> Any:
    """Return the next batch.

    Raises:
        WorkerLostError: A process has ended.
        RuntimeError: None gave a batch within the loader's time-out; they are ended.
    """
    return _watched(iterator, lambda: next(iterator))


def stop(iterator: Any) -> None:
    """End the processes, which may be at work."""
    workers = _workers_of(iterator)
    if not all(worker.is_alive() for worker in workers):
        kill(iterator)
    elif workers:
        iterator._shutdown_workers()
        _kill(workers, os.getpid())


def kill(iterator: Any) -> None:
    """End the processes at once, where one of them is lost.

    torch's own way out takes locks that a process may have held when it was killed.
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
    """Do what needs the processes, and tell their death from what they raise."""
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
                f"no loader process gave a batch within {iterator._timeout:g} s"
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
    """Say how the first process that has ended did so."""
    # Its pipes may be closed a moment before it can be waited for.
    wait([worker.sentinel for worker in workers], timeout=1.0)
    for worker in workers:
        code = worker.exitcode
        if code is not None:
            how = f"exit code {code}" if code >= 0 else f"signal {-code}, {signal.strsignal(-code)}"
            return f"process {worker.pid}: {how}"
    return "process unknown"


def _forget(iterator: Any) -> None:
    """Let no death of the iterator's processes be raised any more."""
    with contextlib.suppress(ValueError):
        _remove_worker_pids(id(iterator))


def _kill(workers: Sequence[BaseProcess], owner: int) -> None:
    # A process forked from the rank has a copy of the iterator, but no right to end anything.
    if os.getpid() != owner:
        return
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(_JOIN_S)
