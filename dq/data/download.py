"""Download a file, with retries: whole or not at all, and verified if its md5 is known."""

import contextlib
import hashlib
import http.client
import logging
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from dq.counted import counted
from dq.data.disk import explained, require_space
from dq.error_text import error_text
from dq.whole_file import drafts

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_RANGE_NOT_SATISFIABLE = 416
_WORTH_A_RETRY = {408, 429, 500, 502, 503, 504}


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A published file: its address, its local name, and its md5 in hexadecimal."""

    url: str
    filename: str
    md5: str


def fetch_archive(
    archive: Archive,
    folder: Path,
    *,
    num_attempts: int = 5,
    backoff_s: float = 1.0,
    timeout_s: float = 30.0,
) -> Path:
    """Download the archive to an existing folder, check its md5, and return its path.

    A file that exists already is verified and used without the network. After a broken connection,
    the received part stays in `<filename>.part`, and the next attempt or call continues from there.

    Args:
        archive: The archive.
        folder: Where to put it.
        num_attempts: Maximum number of attempts.
        backoff_s: Wait before the second attempt; it doubles for each further one.
        timeout_s: Seconds of silence after which a connection counts as broken.

    Raises:
        ValueError: The folder cannot be written.
        RuntimeError: The network, the server, the file or the disk fails; the message says what to
            do by hand.
    """
    target = folder / archive.filename
    part = folder / f"{archive.filename}.part"
    if target.is_file():
        if not has_md5(target, archive.md5):
            raise RuntimeError(
                f"{target} is not the published file (its md5 is not {archive.md5}): "
                f"delete it, or put the one from {archive.url}"
            )
        return target
    reason = _received(
        archive.url,
        part,
        md5=archive.md5,
        num_attempts=num_attempts,
        backoff_s=backoff_s,
        timeout_s=timeout_s,
    )
    if reason:
        raise RuntimeError(
            f"cannot fetch {archive.url} ({reason}): download it on another machine and put it "
            f"into {folder.resolve()} as {archive.filename}, then run this again"
        )
    with explained(folder):
        return part.replace(target)


def fetch_file(
    url: str,
    target: Path,
    *,
    num_attempts: int = 3,
    backoff_s: float = 0.5,
    timeout_s: float = 30.0,
) -> None:
    """Download a file of unknown content into an existing folder.

    Its length must be the one that the server names. Until the file is complete there is nothing at
    the target, and afterwards nothing else is left.

    Args:
        url: Address of the file.
        target: Path of the file; replaced if it exists.
        num_attempts: Maximum number of attempts; each continues where the one before broke.
        backoff_s: Wait before the second attempt; it doubles for each further one.
        timeout_s: Seconds of silence after which a connection counts as broken.

    Raises:
        ValueError: The address is none, the file cannot be fetched, or its folder cannot be
            written.
        RuntimeError: The disk is full or broken.
    """
    with explained(target.parent), drafts(target) as (draft,):
        reason = _received(
            url,
            draft,
            md5=None,
            num_attempts=num_attempts,
            backoff_s=backoff_s,
            timeout_s=timeout_s,
        )
        if reason:
            raise ValueError(reason)


def _received(
    url: str,
    part: Path,
    *,
    md5: str | None,
    num_attempts: int,
    backoff_s: float,
    timeout_s: float,
) -> str:
    """Complete a part, in several attempts; return why that failed, or nothing.

    With a known md5, a part from an earlier call is continued, and deleted if it turns out wrong.
    """
    reason = ""
    for attempt in range(num_attempts):
        if attempt:
            log.info("%s: %s; trying again", url, reason)
            time.sleep(backoff_s * 2 ** (attempt - 1))
        with explained(part.parent):
            fresh = not part.exists()
        too_long = False
        try:
            _continue_part(url, part, timeout_s)
        except urllib.error.HTTPError as error:
            reason = f"the server answers {error.code} {error.reason}"
            error.close()
            if error.code in _WORTH_A_RETRY:
                continue
            too_long = error.code == _RANGE_NOT_SATISFIABLE and not fresh
            if not too_long:
                break
        except http.client.InvalidURL as error:
            reason = error_text(error)
            break
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            continue
        with explained(part.parent):
            if has_md5(part, md5) if md5 else not too_long:
                return ""
            part.unlink()
        reason = f"the file that came has another {f'md5 than {md5}' if md5 else 'length'}"
        if fresh:
            break
    return reason


def has_md5(path: Path, md5: str) -> bool:
    """Return whether the file has this md5, which detects damage, but not an attack."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return digest.hexdigest() == md5


def _continue_part(url: str, part: Path, timeout_s: float) -> None:
    """Download the rest of a part; start again if the server cannot send a range.

    Raises:
        OSError: The connection broke; the received part is kept.
        http.client.HTTPException: The server's answer cannot be understood.
        ValueError: The folder cannot be written.
        RuntimeError: The disk is full or broken.
    """
    with explained(part.parent):
        present = part.stat().st_size if part.exists() else 0
    # Some servers refuse Python's own name.
    request = urllib.request.Request(url, headers={"User-Agent": "dq"})
    if present:
        request.add_header("Range", f"bytes={present}-")
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        content_range = response.headers.get("Content-Range", "")
        resumed = response.status == 206 and content_range.startswith(f"bytes {present}-")
        length = int(response.headers.get("Content-Length") or 0)
        with explained(part.parent):
            require_space(part.parent, length)
        log.info(
            "fetching %s: %.0f MB%s",
            url,
            length / 1e6,
            f" after the {present / 1e6:.0f} MB that are here" if resumed else "",
        )
        received = 0
        with explained(part.parent):
            file = part.open("ab" if resumed else "wb")
        try:
            while chunk := response.read(_CHUNK):
                with explained(part.parent):
                    file.write(chunk)
                received += len(chunk)
            with explained(part.parent):
                file.close()  # Writes what is left, and a network file system may refuse only here.
        finally:
            with contextlib.suppress(OSError):
                file.close()
    if received < length:
        raise ConnectionError(
            f"the connection closed after {received} of {counted(length, 'byte[s]')}"
        )
