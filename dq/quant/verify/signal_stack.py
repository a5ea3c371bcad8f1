"""Keep the stack on which signal handlers run.

Python's signal handlers run on a separate stack if the thread has one, for example after
``faulthandler.enable()``. OpenVINO sets another stack for the calling thread when it compiles a
model, and restores the previous one when the model is freed. With two models, the second one may
restore the stack of the first one, which is freed already. The next signal with a handler then ends
the process: SIGTERM of Slurm, or SIGCHLD of a data loader's worker (OpenVINO 2026.4.1).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator


class _Stack(ctypes.Structure):
    """``stack_t`` of Linux."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextlib.contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Restore the thread's signal stack after the body."""
    set_stack = _set_stack()
    if set_stack is None:
        yield
        return
    own = _Stack()
    set_stack(None, ctypes.byref(own))
    try:
        yield
    finally:
        set_stack(ctypes.byref(own), None)


def address() -> int | None:
    """Return the address of the thread's signal stack; None if it has none."""
    set_stack = _set_stack()
    own = _Stack()
    if set_stack is not None:
        set_stack(None, ctypes.byref(own))
    found: int | None = own.sp
    return found


@functools.cache
def _set_stack() -> ctypes._NamedFuncPointer | None:
    """Return libc's ``sigaltstack``, or None on systems without it."""
    try:
        return ctypes.CDLL(None).sigaltstack
    except (OSError, AttributeError, TypeError):
        return None
