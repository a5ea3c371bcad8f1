"""A ``_base_`` that is wrong is one line that names it, on a login node and for every command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.plan import read_plan
from slurm.copies.config_files import check_config, copy_config, literal_setting


def _read(path: Path) -> object:
    return read_plan(argparse.Namespace(config=str(path), cfg_options=[], seed=None))


# What the commands do with a config, and what `submit` does with it where mmcv is not installed.
USES: dict[str, Callable[[Path], object]] = {
    "read": _read,
    "check": check_config,
    "copy": lambda path: copy_config(path, path.parent / "copy"),
    "look": lambda path: literal_setting(path, "work_dir"),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("base", "shown"),
    [
        ("None", "None"),
        ("5", "5"),
        ("True", "True"),
        ("[5]", "5"),
        ("['a.py', None]", "None"),
        ("{}", "{}"),
        ("()", r"\(\)"),
        ("('a.py', 'a.py')", r"\('a.py', 'a.py'\)"),
        ("[['a.py']]", r"\['a.py'\]"),
        ("{'a.py'}", "{'a.py'}"),
        ("b'a.py'", "b'a.py'"),
        ("''", "''"),
        ("['']", "''"),
        (r"'a\0.py'", r"'a\\x00.py'"),
    ],
)
def test_a_base_that_is_no_path_is_named(tmp_path: Path, use: str, base: str, shown: str) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    for name, text in {"mine.py": base, "above.py": "'mine.py'"}.items():
        (tmp_path / name).write_text(f"_base_ = {text}\n")
        line = rf"^config {tmp_path}/mine.py: _base_ has {shown}, which is no path; give the path"
        with pytest.raises(ValueError, match=line):
            USES[use](tmp_path / name)


@pytest.mark.parametrize("use", ["read", "check"])
def test_a_base_that_is_missing_or_its_own_is_named(tmp_path: Path, use: str) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("_base_ = ['nowhere.py']\n")
    with pytest.raises(ValueError, match=rf"^config {tmp_path}/nowhere.py.*(No such|not exist)"):
        USES[use](mine)
    mine.write_text("_base_ = 'other.py'\n")
    (tmp_path / "other.py").write_text("_base_ = 'mine.py'\n")
    with pytest.raises(ValueError, match=rf"^config {mine} is its own base; leave it out"):
        USES[use](mine)


def test_the_base_that_counts_is_copied(tmp_path: Path) -> None:
    from dq.detector.config.config_file import load_config_file

    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text(f"name = {name!r}\n")
    for number, text in enumerate(("_base_: str = 'b.py'", "_base_ = 'a.py'\n_base_ = 'b.py'")):
        path = tmp_path / f"mine_{number}.py"
        path.write_text(f"{text}\nmore = 1\n")
        copy = copy_config(path, tmp_path / f"copy_{number}")
        assert load_config_file(copy).name == load_config_file(path).name == "b"
