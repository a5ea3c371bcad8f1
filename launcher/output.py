"""Standard output and standard error that may fail: a full disk, a closed pipe or terminal.

The output of a batch job is a file whose disk may fill up, and ``tee`` or a terminal may end before
the command does. A command that computes continues, because its results are files. A command whose
result is its output ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

log = logging.getLogger(__name__)
# What a shell reports for a program that the signal SIGPIPE has ended.
READER_LEFT = 141


class OutputLostError(RuntimeError):
    """Standard output cannot be written.

    Attributes:
        reader_left: It is a pipe whose reader has ended, such as ``head``, which is no fault.
    """

    def __init__(self, message: str, *, reader_left: bool) -> None:
        super().__init__(message)
        self.reader_left = reader_left


class Output:
    """A text stream whose failures are reported once, and that is tried again each time.

    Args:
        stream: The stream itself; it also handles everything that this class does not.
        name: For messages.
        raises: Raise `OutputLostError` instead of continuing.
    """

    def __init__(self, stream: TextIO, name: str, *, raises: bool) -> None:
        self._stream, self._name, self.raises = stream, name, raises
        self._said = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text; characters that the stream's encoding does not have are escaped."""
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            escaped = text.encode(encoding, "backslashreplace").decode(encoding)
            return self.write(escaped)
        except OSError as error:
            self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Pass everything on to the operating system."""
        try:
            self._stream.flush()
        except OSError as error:
            self._fail(error)

    def end(self) -> None:
        """Flush; what cannot be written is dropped, so that the interpreter ends silently."""
        try:
            self._stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
                self._stream.flush()

    def _fail(self, error: OSError) -> None:
        line = f"{self._name} cannot be written: {error.strerror}"
        if self.raises:
            raise OutputLostError(line, reader_left=isinstance(error, BrokenPipeError)) from error
        if not self._said:
            self._said = True
            log.info("%s; the command continues", line)  # A warning without a log would be printed.
            print(f"warning: {line}; the command continues", file=sys.stderr, flush=True)


@contextlib.contextmanager
def guarded_output() -> Iterator[None]:
    """Guard standard output and standard error in the body; output to a closed one is dropped.

    Standard output raises `OutputLostError`, except within `output_may_fail`. Standard error never
    raises: nobody could be told.
    """
    _open_closed()
    former = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        out = Output(sys.stdout or nowhere, "standard output", raises=True)
        err = Output(sys.stderr or nowhere, "standard error", raises=False)
        sys.stdout, sys.stderr = out, err
        try:
            yield
        finally:
            out.end()
            err.end()
            sys.stdout, sys.stderr = former


@contextlib.contextmanager
def output_may_fail() -> Iterator[None]:
    """Continue in the body if standard output cannot be written; a warning says so once."""
    out = sys.stdout
    if not isinstance(out, Output):
        yield
        return
    former, out.raises = out.raises, False
    try:
        yield
    finally:
        out.raises = former


def _open_closed() -> None:
    """Open the null device on closed standard streams.

    Otherwise a file that is opened later, such as a checkpoint, could get the number of a standard
    stream and receive printed text.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # The lowest free number, which is this one.
