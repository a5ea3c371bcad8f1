"""Native kernels: machines on which they cannot be built."""

from __future__ import annotations

from pathlib import Path

import pytest

from dq.native import SWITCH, Kernels


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    source = tmp_path / "nothing.cpp"
    source.write_text("")
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Kernels(source, {})


@pytest.mark.parametrize("setting", ["", " "])
def test_an_empty_name_of_a_compiler_is_the_usual_one(
    setting: str,
    kernels: Kernels,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CXX", setting)
    monkeypatch.setenv("PATH", "")
    assert kernels.library() is None
    assert "no native kernels of nothing.cpp" in caplog.text
    assert "g++ is not on PATH" in caplog.text


def test_a_user_without_a_home_folder_gets_a_warning(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", refuse)
    assert kernels.library() is None
    assert "no native kernels of nothing.cpp" in caplog.text
    assert "Could not determine home directory." in caplog.text
