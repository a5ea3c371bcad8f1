"""A pseudo-terminal, and what a person sees in it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
import threading
from typing import TextIO

_STYLE = re.compile(r"\x1b\[[0-9;]*m")


class Terminal:
    """A pseudo-terminal of so many columns; `stream` writes into it."""

    def __init__(self, columns: int = 100) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream: TextIO = os.fdopen(slave, "w", encoding="utf-8", buffering=1)
        self._read: list[bytes] = []
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()

    def _follow(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # Nobody has it open for writing any more.
                return
            if not data:
                return
            self._read.append(data)

    def close(self) -> str:
        """Close the stream, and return all that was written, without colours."""
        self.stream.close()
        self._reader.join(10)
        os.close(self._master)
        return _STYLE.sub("", b"".join(self._read).decode())


def seen(written: str) -> list[str]:
    """Return the lines that stay on the screen."""
    lines, column = [""], 0
    for part in re.findall(r"\x1b\[2K|\r|\n|[^\x1b\r\n]+", written):
        if part == "\x1b[2K":
            lines[-1] = ""
        elif part == "\r":
            column = 0
        elif part == "\n":
            lines.append("")
            column = 0
        else:
            lines[-1] = lines[-1][:column].ljust(column) + part + lines[-1][column + len(part) :]
            column += len(part)
    return lines


def drawn(written: str) -> list[str]:
    """Return each picture of the last line that was replaced by another one."""
    return [picture for picture in re.findall(r"\r\x1b\[2K([^\r\n\x1b]+)", written) if picture]
