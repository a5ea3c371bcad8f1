"""The set-up names what a machine lacks, and changes only the necessary compiler options."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("environment", ROOT / "setup/environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_missing_compiler_is_reported_with_the_fix(setup: ModuleType) -> None:
    with pytest.raises(setup.SetupError, match=r"no C\+\+ compiler 'no-such-g\+\+'.*apt-get"):
        setup.require_compiler("no-such-g++")


def test_compiler_without_cxx20_is_reported(setup: ModuleType, tmp_path: Path) -> None:
    old = tmp_path / "old-g++"
    old.write_text("#!/bin/sh\necho 'unrecognized option -std=c++20' >&2\nexit 1\n")
    old.chmod(0o755)
    with pytest.raises(setup.SetupError, match=r"cannot compile a C\+\+20 file.*unrecognized"):
        setup.require_compiler(str(old))


def test_full_disk_is_reported_before_anything_is_done(setup: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(setup.SetupError, match="needs 1000000000 GiB"):
        setup.require_space(tmp_path / "not" / "there", 1e9, "this test")


def test_wrapper_changes_the_standard_and_drops_debug_symbols(
    setup: ModuleType, tmp_path: Path
) -> None:
    wrapper = setup.write_wrapper(tmp_path / "g++", "/bin/echo")
    words = ["-g", "-std=c++17", "-O2", "-DNAME=a b", "-gx"]
    done = subprocess.run([wrapper, *words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "-std=c++20 -O2 -DNAME=a b -gx"


def test_failing_command_shows_the_end_of_its_log(setup: ModuleType, tmp_path: Path) -> None:
    code = "print('the reason'); raise SystemExit(3)"
    with pytest.raises(setup.SetupError, match=r"(?s)the reason.*full log: "):
        setup.run([sys.executable, "-c", code], log=tmp_path / "log")


def test_every_dependency_is_pinned_to_one_known_good_version(setup: ModuleType) -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (r for group in groups for r in group):
        name = re.split(r"[<>=\[]", requirement)[0]
        assert setup.pinned(name).startswith(f"{name}==")


def test_second_set_up_with_nothing_changed_does_nothing(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "setup.sha256").write_text(setup.fingerprint("test"))
    monkeypatch.setattr(setup, "run", lambda *a, **k: pytest.fail("something was installed"))
    setup.create(tmp_path, "test")
