"""A checkpoint's address: refused in one line, or in the cache with all of its bytes."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from dq.detector.config.addresses import local_file
from tests.processes.file_server import serving


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["http://host:abc/x.pth", "http://localhost:1/a b/x.pth"])
def test_a_broken_address_is_named(name: str, cache: Path) -> None:
    """Python's HTTP client refuses it with an error that is neither OSError nor ValueError."""
    with pytest.raises(ValueError, match=r"x\.pth cannot be fetched \("):
        local_file(name)


@pytest.mark.parametrize("trouble", [["cut"], ["cut", "503"], ["cut", "cut"], ["cut", "no ranges"]])
def test_a_connection_that_ends_early_is_continued(trouble: list[str], cache: Path) -> None:
    content = bytes(range(256)) * 9000
    with serving() as server:
        server.files["a-1234.pth"], server.trouble = content, trouble
        path = local_file(server.url("a-1234.pth"))
    assert path == cache / "checkpoints/a-1234.pth"
    assert path.read_bytes() == content


@pytest.mark.parametrize("trouble", [["cut"] * 9, ["404"], ["cut", "404"], ["503"] * 9])
def test_a_file_that_never_comes_whole_is_not_in_the_cache(trouble: list[str], cache: Path) -> None:
    with serving() as server:
        server.files["a.pth"], server.trouble = b"x" * 10**5, trouble
        with pytest.raises(ValueError, match=r"a\.pth cannot be fetched \(the "):
            local_file(server.url("a.pth"))
        assert list((cache / "checkpoints").iterdir()) == []
        server.trouble = []
        assert local_file(server.url("a.pth")).read_bytes() == server.files["a.pth"]


def test_a_full_disk_names_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 99, 1))
    with serving() as server:
        server.files["a.pth"] = b"x" * 100
        with pytest.raises(RuntimeError, match=r"MB free and .* another folder with TORCH_HOME$"):
            local_file(server.url("a.pth"))
    assert list((cache / "checkpoints").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(cache: Path) -> None:
    (cache / "checkpoints").write_text("")
    with pytest.raises(ValueError, match=r"a\.pth cannot be fetched .*checkpoints cannot be"):
        local_file("http://127.0.0.1:9/a.pth")
