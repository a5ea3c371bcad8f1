"""The sdist and the wheel have what they should have, and the wheel works without the checkout."""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import dq
from dq.version import version
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def setup(scripts: dict[str, ModuleType]) -> Any:
    """The modules of the set-up."""
    return SimpleNamespace(**scripts)


def test_the_version_stands_in_one_place(setup: Any) -> None:
    number = setup.distribution.version_of()
    assert re.fullmatch(r"\d+\.\d+\.\d+(rc\d+)?", number)
    assert number == version() == dq.__version__
    said = re.compile(rf"""(?:version|__version__)["']?\s*[:=]+\s*["']v?{re.escape(number)}["']""")
    names = [
        n for n in setup.distribution.sources() if n.endswith((".py", ".toml", ".yml", ".cfg"))
    ]
    assert [name for name in names if said.search((ROOT / name).read_text())] == ["pyproject.toml"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dq.nothing


def test_the_changelog_has_the_version(setup: Any) -> None:
    heads = re.findall(r"^## \[(.+?)\](.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert heads[0] == ("Unreleased", "")
    assert all(re.fullmatch(r" - \d{4}-\d\d-\d\d", date) for _, date in heads[1:])
    # Before a release its content is what is not released.
    number = setup.distribution.version_of()
    released = [name for name, _ in heads[1:]]
    assert number in released or f"this will be {number}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_a_release_works_without_the_checkout(setup: Any, tmp_path: Path) -> None:
    """All files are built, compared with the checkout and each other, installed and used."""
    built = setup.distribution.build(tmp_path / "dist")
    assert {path.name for path in (tmp_path / "dist").iterdir()} == {
        f"dq_launcher-{version()}.tar.gz",
        f"dq_launcher-{version()}-py3-none-any.whl",
    }
    names = set(setup.distribution.content_of(built.wheel))
    assert {"dq/py.typed", "slurm/profiles/a100.toml", "dq/quant/kernels/native.cpp"} <= names
    assert {"dq/configs/digits/ssd_resnet_fpn_160.py", "dq/dist/exchange/collectives.py"} <= names
    assert not [n for n in names if n.split("/")[0] in ("tests", "benchmarks", "examples", "docs")]
    packages = Path(sysconfig.get_paths()["purelib"])
    python = setup.trial.empty_environment(tmp_path / "venv", built.wheel, packages)
    (tmp_path / "empty").mkdir()
    setup.trial.use(python, tmp_path / "empty", version())


def test_a_missing_file_and_one_too_many_are_named(setup: Any) -> None:
    check = setup.distribution.check_names
    check("the wheel", {"a", "b"}, {"b", "a"})
    with pytest.raises(setup.steps.SetupError, match=r"the wheel lacks b, c; see "):
        check("the wheel", {"a"}, {"a", "b", "c"})
    with pytest.raises(setup.steps.SetupError, match=r"the wheel has b, c, d and 1 more; see "):
        check("the wheel", {"a", "b", "c", "d", "e"}, {"a"})


def test_wheels_that_differ_are_refused(setup: Any) -> None:
    check = setup.distribution.check_equal
    check({"a": b"1"}, {"a": b"1"})
    for other in ({"a": b"2"}, {}, {"a": b"1", "b": b""}):
        with pytest.raises(setup.steps.SetupError, match=r"differs .* files: 1, first [ab]"):
            check({"a": b"1"}, other)


def test_another_version_is_refused(setup: Any) -> None:
    check, sdist = setup.distribution.check_version, Path("x-1.2.3.tar.gz")
    check("1.2.3", sdist, Path("x-1.2.3-py3-none-any.whl"))
    with pytest.raises(setup.steps.SetupError, match=r"x-1\.2\.3\.tar\.gz is not of version 1"):
        check("1.2.4", sdist)


def test_sources_are_found_without_git(setup: Any, tmp_path: Path) -> None:
    own = ["dq/dist/a.py", "dq/data/b.py", "dq/c.py", "configs/d.py", "README.md"]
    others = [
        *("dq/dist/__pycache__/a.pyc", "dist/x.whl", "build/lib/dq/c.py", "runs/x/float.pth"),
        *("data/digits/a.jpg", ".venv/lib/e.py", "dq_launcher.egg-info/PKG-INFO"),
    ]
    for name in own + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert setup.distribution.sources(tmp_path) == sorted(own)


def test_code_of_the_checkout_is_noticed(setup: Any, tmp_path: Path) -> None:
    """An environment whose packages are those of the checkout is no proof for a wheel."""
    with pytest.raises(setup.steps.SetupError, match="the wheel is not what is imported: "):
        setup.trial.use(Path(sys.executable), tmp_path, version())
