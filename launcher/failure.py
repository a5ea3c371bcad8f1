"""Report a failed command: one line on the terminal, the traceback in a file, an exit code."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from dq.exit_codes import STOPPED_CODE

USER_ERROR, WORLD_ERROR, STOPPED, INTERRUPTED = 2, 1, STOPPED_CODE, 130
DEBUG = "--debug"


def exit_code(error: BaseException) -> int:
    """Return 2 for a mistake of the user, 1 for a failed environment or an unexpected error.

    If the error only follows from an error on another rank, it has that error's code, which is
    noted on the exception.
    """
    from dq.dist.errors.foreseen import is_expected
    from dq.dist.errors.notes import notes_on

    noted = notes_on(error).exit_code
    if noted is not None:
        return noted
    return USER_ERROR if isinstance(error, ValueError) and is_expected(error) else WORLD_ERROR


def line_of(error: BaseException, log: Path | None) -> str:
    """Return the line that the user reads about an error.

    Args:
        error: The caught error.
        log: The file with its traceback, or the folder of such files.
    """
    from dq.dist.errors.foreseen import error_message, error_summary, is_expected

    if not is_expected(error):
        from dq.dist.errors.device import explain_device
        from dq.dist.errors.disk import explain_disk

        if words := explain_device(error) or explain_disk(error):
            return words if log is None else f"{words} (traceback in {log})"
        where = f"; the traceback is in {log}" if log is not None else ""
        return f"{error_summary(error)}{where} ({DEBUG} prints it)"
    words = error_message(error) or type(error).__name__
    if isinstance(error, ValueError) or log is None:
        return words
    return f"{words} (traceback in {log})"


def report(error: BaseException, *, debug: bool = False, log: Path | None = None) -> int:
    """Print an error as one line, once over all ranks, unless already done; return the exit code.

    Args:
        error: The caught error.
        debug: Print the traceback too.
        log: The file with the traceback; None if it is still to be written.
    """
    from dq.dist.errors.notes import notes_on

    code = exit_code(error)
    if notes_on(error).reported:
        return code
    if log is None and code != USER_ERROR:
        log = write_traceback(error)
    tell_once(line_of(error, log), code, lambda: say(error, log, debug=debug))
    return code


def tell_once(line: str, code: int, print_it: Callable[[], None]) -> None:
    """Print an error that comes before the process group exists, on one rank only.

    Args:
        line: The line for the user.
        code: Its exit code.
        print_it: Prints the line; called unless another rank prints this or its own error.
    """
    if not any(name in os.environ for name in ("RANK", "SLURM_PROCID")):
        print_it()
        return
    try:
        from dq.dist.group.early_failure import StartFailure, report_failure
        from dq.dist.rendezvous.environment import read_environment

        environment = read_environment()
    except (ImportError, ValueError):
        # Without torch, or without a rank number, the other ranks cannot be asked.
        print_it()
        return
    failure = StartFailure(rank=environment.rank, mistake=code == USER_ERROR, line=line)
    with contextlib.suppress(KeyboardInterrupt):
        report_failure(environment, failure, print_it)


def say(error: BaseException, log: Path | None, *, debug: bool = False) -> None:
    """Print an error's line, with the rank unless it is the main rank."""
    say_line(line_of(error, log))
    if debug:
        text = "".join(traceback.format_exception(error))
        print(text, file=sys.stderr, end="", flush=True)


def say_line(line: str) -> None:
    """Print a line as an error, with the rank unless it is the main rank."""
    from dq.dist.rendezvous.environment import read_environment

    try:
        rank = str(read_environment().rank)
    except ValueError:
        rank = os.environ.get("RANK", "0")
    where = "" if rank == "0" else f"rank {rank}: "
    print(f"error: {where}{line}", file=sys.stderr, flush=True)


def wants_debug(words: Sequence[str]) -> bool:
    """Whether the command line asks for tracebacks; the rest of it may be invalid."""
    return DEBUG in words


def write_traceback(error: BaseException) -> Path | None:
    """Write the traceback into a new file and return its path, or None if it cannot be written.

    For a command that has no work dir, or fails before it has one.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        folder = Path(base) / "dq-launcher" / "errors"
        path = folder / f"{time.strftime('%Y%m%d_%H%M%S')}_{os.getpid()}.log"
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{' '.join(sys.argv)}\n{''.join(traceback.format_exception(error))}\n")
    except (OSError, RuntimeError):  # RuntimeError: a user of a container may have no home.
        return None
    return path


def log_traceback(error: BaseException) -> bool:
    """Write the traceback into this rank's log file only; return whether there is such a file."""
    files = [h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]
    text = "".join(traceback.format_exception(error))
    record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, "%s", (text,), None)
    for handler in files:
        handler.handle(record)
    return bool(files)


@contextlib.contextmanager
def quiet_interpreter(*, debug: bool) -> Iterator[None]:
    """Keep Python's own tracebacks and warnings off the terminal while the body runs.

    An error in a thread goes into the log, with one line on the terminal. Errors in destructors and
    warnings go only into the log. With ``debug`` Python's own behaviour is kept.
    """
    if debug:
        yield
        return
    thread_hook, destructor_hook = threading.excepthook, sys.unraisablehook
    threading.excepthook = _thread_failed
    sys.unraisablehook = _destructor_failed
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        threading.excepthook, sys.unraisablehook = thread_hook, destructor_hook


def _thread_failed(arguments: Any) -> None:
    error: BaseException | None = arguments.exc_value
    if error is None or isinstance(error, SystemExit):
        return
    name = "unknown" if arguments.thread is None else arguments.thread.name
    _warn(error, f"thread {name} ended")


def _destructor_failed(arguments: Any) -> None:
    error: BaseException | None = arguments.exc_value
    if error is not None:
        trace: TracebackType | None = arguments.exc_traceback
        log_traceback(error.with_traceback(trace))


def _warn(error: BaseException, what: str) -> None:
    from dq.dist.errors.foreseen import error_summary

    if not log_traceback(error):
        write_traceback(error)
    print(f"warning: {what}: {error_summary(error)}", file=sys.stderr, flush=True)
