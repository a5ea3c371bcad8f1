"""Readable messages for a file that a disk does not accept or give back."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

from dq.whole_file import FULL

REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
BROKEN = frozenset({errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV})


def explain_disk(error: BaseException) -> str | None:
    """Return a sentence for a disk that is full, refuses access or fails; None for other errors.

    Args:
        error: Raised by Python. An error while writing, unlike one while opening, has no file name;
            if the disk is full, the sentence then says "a file".
    """
    if not isinstance(error, OSError):
        return None
    # An error of a copy or of a rename has two names; the second is that of the new file.
    name = error.filename2 if error.errno in FULL and error.filename2 else error.filename
    file = "a file" if name is None else str(name)
    if error.errno in FULL:
        return (
            f"{file} could not be written: {error.strerror}; make room (or raise your quota), or"
            f" {'let $TMPDIR name' if _is_temporary(file) else 'choose'} another folder"
        )
    if name is None:  # Signals and sockets raise the same errors, without a file name.
        return None
    if error.errno in REFUSED:
        return (
            f"{file} cannot be used: {error.strerror}; change its permissions, or choose another"
            " file or folder"
        )
    if error.errno in BROKEN:
        return (
            f"the disk of {file} failed: {error.strerror}; look at the kernel's log (dmesg), or"
            " choose another disk"
        )
    return None


def _is_temporary(file: str) -> bool:
    """Return whether a library chose the file's place with `tempfile`, not the user."""
    try:
        below = Path(file).relative_to(tempfile.gettempdir()).parts
    except (ValueError, OSError):  # Elsewhere; or no folder takes temporary files.
        return False
    return any(part.startswith(tempfile.gettempprefix()) for part in below[:1])
