"""Readable messages for a disk that is full, refuses access or fails."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from dq.dist.errors.disk import explain_disk
from launcher.failure import exit_code, line_of


def of(number: int, *names: str) -> OSError:
    return OSError(number, os.strerror(number), *names)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (of(errno.ENOSPC, "w/a.json"), "w/a.json could not be written: No space left on device; "),
        (of(errno.EDQUOT, "w/a.json"), "raise your quota"),
        (OSError(errno.ENOSPC, "Full", "from", None, "to"), "to could not be written: Full; make"),
        (of(errno.EFBIG), "a file could not be written: File too large; make room"),
        (of(errno.EACCES, "w/a.json"), "w/a.json cannot be used: Permission denied; change its"),
        (of(errno.EROFS, "w"), "w cannot be used: Read-only file system; "),
        (of(errno.EIO, "w/a.jpg"), "the disk of w/a.jpg failed: Input/output error; "),
    ],
)
def test_the_line_names_file_and_mend(error: OSError, words: str) -> None:
    sentence = explain_disk(error)
    assert sentence is not None
    assert words in sentence
    assert "\n" not in sentence
    line = line_of(error, Path("rank_0.log"))
    assert line == f"{sentence} (traceback in rank_0.log)"
    assert exit_code(error) == 1


def test_a_temporary_file_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert str(explain_disk(of(errno.ENOSPC, str(tmp_path)))).endswith("choose another folder")
    for place, words in {
        "tmp12ab34cd/optimized.onnx": "let $TMPDIR name another folder",
        "w/eval/summary.json": "choose another folder",
    }.items():
        assert str(explain_disk(of(errno.ENOSPC, str(tmp_path / place)))).endswith(words)


@pytest.mark.parametrize(
    "error",
    [
        of(errno.ENOENT, "w/a.json"),
        of(errno.EPERM),  # As of a signal to another user's process.
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        OSError("no number"),
        RuntimeError("No space left on device"),
    ],
)
def test_others_keep_their_own_message(error: BaseException) -> None:
    assert explain_disk(error) is None
