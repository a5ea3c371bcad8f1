"""A user without a home folder, as in many containers, gets a line instead of a traceback."""

from __future__ import annotations

import importlib.util
import pwd
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

ASKS = re.compile(r"Path\.home\(|\.expanduser\(\)|getpass\.getuser\(")


def _index() -> str:
    from slurm.record import chains

    with pytest.raises(RuntimeError, match="; set HOME or XDG_STATE_HOME") as said:
        chains()
    return str(said.value)


def _traceback() -> str:
    from launcher.failure import write_traceback

    assert write_traceback(ZeroDivisionError("of a test")) is None
    return ""


def _kernels() -> str:
    from dq.native import Kernels

    assert Kernels(Path("nothing.cpp"), {}).library() is None
    return ""


def _doctor() -> str:
    from dq.detector.doctor.machine import disk

    found = disk()
    assert found.mend == "set HOME or XDG_CACHE_HOME to a folder"
    return found.said


def _wheel() -> str:
    folder = ROOT / "setup"
    sys.path.insert(0, str(folder))
    before = set(sys.modules)
    try:
        spec = importlib.util.spec_from_file_location("of_test_home", folder / "mmcv_wheel.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            del sys.modules[name]
    with pytest.raises(module.SetupError, match="set HOME or XDG_CACHE_HOME") as said:
        module.cache_root()
    return str(said.value)


# What each file that asks for the home folder does if there is none.
WITHOUT: dict[str, Callable[[], str]] = {
    "slurm/index.py": _index,
    "launcher/failure.py": _traceback,
    "dq/native.py": _kernels,
    "dq/detector/doctor/machine.py": _doctor,
    "setup/mmcv_wheel.py": _wheel,
}


def test_every_file_that_asks_for_the_home_folder_is_known() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for place in ("dq", "launcher", "slurm", "setup", "benchmarks", "website", "examples")
        for path in (ROOT / place).rglob("*.py")
        if ASKS.search(path.read_text(encoding="utf-8"))
    }
    assert found == set(WITHOUT)


@pytest.mark.parametrize("place", WITHOUT)
def test_it_does_without(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    said = WITHOUT[place]()
    assert not said or "no home folder" in said
