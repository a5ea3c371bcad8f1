"""Checkpoints: written atomically with a checksum file, and read without running code in them."""

import hashlib
import logging
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from dq.dist.files.safe_globals import numpy_globals
from dq.whole_file import drafts, flush

log = logging.getLogger(__name__)


def save_checkpoint(
    path: str | os.PathLike[str],
    content: Mapping[str, object],
    *,
    note: str = "",
    beside: Mapping[Path, bytes] = MappingProxyType({}),
) -> None:
    """Write a checkpoint whole or not at all, with its checksum in `<path>.sha256`.

    It is written under a temporary name, flushed to the disk and then renamed. An existing file of
    this name stays as it is until the rename and after any failure. Only the calling rank writes.

    Args:
        path: The file; missing folders are created.
        content: Anything `torch.save` can write. Only tensors and plain data can be read without
            trusting the file.
        note: A line for `note_of`, which reads it without reading the checkpoint. It is written to
            the checksum file as a comment that `sha256sum --check` ignores.
        beside: Other files that belong to it, in existing folders: either all files are written, or
            none.

    Raises:
        RuntimeError: The disk is full or cannot be written; the message says why.
    """
    path = Path(path)
    sidecar = _sidecar(path)
    handled = sys.exception()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with drafts(path, sidecar, *beside) as (draft, draft_of_sidecar, *others):
            for other, other_content in zip(others, beside.values(), strict=True):
                other.write_bytes(other_content)
            with draft.open("wb") as file:
                torch.save(dict(content), file)
            comment = f"# {note}\n" if note else ""
            draft_of_sidecar.write_text(f"{_sha256(draft)}  {path.name}\n{comment}")
            for written in (draft, draft_of_sidecar, *others):
                flush(written)
            # A crash after this line leaves a whole file without a checksum, never a wrong one.
            sidecar.unlink(missing_ok=True)
    except BaseException as error:
        refusal = _refusal_of_disk(error, handled)
        if refusal is None:
            raise
        raise RuntimeError(
            f"checkpoint {path} could not be written: {refusal}; an older file of this name is "
            "untouched; make room or choose another folder"
        ) from error


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    map_location: str | torch.device = "cpu",
    trusted: bool = False,
) -> dict[str, Any]:
    """Read a checkpoint after verifying it: by its checksum file if there is one, else by CRCs.

    Only data is read: tensors, plain Python, and numpy scalars and arrays. Any rank may call it.

    Args:
        path: A file of `save_checkpoint`, `torch.save` or a model zoo.
        map_location: The device of the tensors.
        trusted: Also build any other object that the file names, which can run arbitrary code.

    Raises:
        ValueError: The file is missing, a folder, empty, damaged or no checkpoint, or it contains
            objects that need `trusted`; the message says what is wrong and how to fix it.
    """
    path = Path(path)
    _refuse_damage(path)
    try:
        with torch.serialization.safe_globals(list(numpy_globals())):
            content = torch.load(path, map_location=map_location, weights_only=not trusted)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        named = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and named:
            raise ValueError(
                f"checkpoint {path} holds an object of {named[1]}, not only data; reading it can "
                "run any code, so only if you trust its origin allow it with trusted=True "
                "(--trust-checkpoint)"
            ) from error
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(
            f"{path} is damaged or is not a checkpoint ({type(error).__name__}: {reason}); use an "
            "earlier checkpoint or fetch it again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, not a dict as a checkpoint does; "
            "give the path of a checkpoint"
        )
    return content


def peek_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read a checkpoint without its tensors' values and without verifying it; any rank may.

    Returns:
        The content, with tensors on the device ``meta``; None if the file is no checkpoint, is
        damaged or contains more than data.
    """
    for mapped in (True, False):  # Files in torch's old format cannot be mapped.
        try:
            with torch.serialization.safe_globals(list(numpy_globals())):
                content = torch.load(path, map_location="meta", weights_only=True, mmap=mapped)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            log.debug("%s cannot be looked into: %s", path, error)
            continue
        return content if isinstance(content, dict) else None
    return None


def note_of(path: str | os.PathLike[str]) -> str | None:
    """Return the note given to `save_checkpoint`, or None."""
    try:
        lines = _sidecar(Path(path)).read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next((line[2:] for line in lines if line.startswith("# ")), None)


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refusal_of_disk(error: BaseException | None, handled: BaseException | None) -> str | None:
    """Find the operating system's error that caused an error; torch's zip writer hides it.

    Args:
        error: Raised while the checkpoint was written.
        handled: The error that the caller handles meanwhile, which is not of this writing.
    """
    while error is not None and error is not handled:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        error = error.__cause__ or error.__context__
    return None


def _refuse_damage(path: Path) -> None:
    if not path.exists():
        raise ValueError(f"checkpoint {path} does not exist; check the path")
    if not path.is_file():
        raise ValueError(f"checkpoint {path} is a folder; give the path of a file in it")
    if path.stat().st_size == 0:
        raise ValueError(f"checkpoint {path} is empty; use an earlier checkpoint")
    sidecar = _sidecar(path)
    if sidecar.exists():
        wanted = sidecar.read_text(errors="replace").partition(" ")[0]
        if _sha256(path) != wanted:
            raise ValueError(
                f"checkpoint {path} does not match its checksum in {sidecar.name}: it is damaged; "
                f"use an earlier one, or remove {sidecar.name} if you replaced the file yourself"
            )
    else:
        _refuse_damaged_zip(path)


def _refuse_damaged_zip(path: Path) -> None:
    """Check the CRCs of a zip file, which torch.load does not do; older formats have none."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError) as error:
        bad = str(error)
    if bad is not None:
        raise ValueError(
            f"checkpoint {path} is damaged or cut short ({bad}); use an earlier checkpoint or "
            "fetch it again"
        )
