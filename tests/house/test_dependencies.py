"""Every package that the code imports is a dependency in pyproject.toml: a wheel has no other."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping

import pytest

from tests.house.order import ROOT

PACKAGES = ("dq", "launcher", "slurm")
# A part of torch's wheels for GPUs; imported only where it is.
GUARDED = {"triton"}
# Groups for those who work on the project, not for users.
OURS = {"test", "docs", "mutation"}


@pytest.fixture(scope="module")
def imported() -> dict[str, str]:
    """Return a file that imports each package that is neither ours nor Python's own."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for name in names_in(path.read_text()):
                if name not in sys.stdlib_module_names and name not in PACKAGES:
                    found.setdefault(name, path.relative_to(ROOT).as_posix())
    return found


def names_in(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).partition(".")[0]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~;\[ ]", name)[0]).lower()


def test_each_is_declared_for_users(imported: Mapping[str, str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].items()
    groups = [project["dependencies"], *(group for name, group in extras if name not in OURS)]
    declared = {normal(each) for group in groups for each in group}
    installed = importlib.metadata.packages_distributions()
    for module in sorted(imported):
        owners = {normal(name) for name in installed.get(module, ())}
        assert owners & declared or module in GUARDED, f"{imported[module]} imports {module}"


def test_imports_are_found_wherever_they_are(imported: Mapping[str, str]) -> None:
    assert {"torch", "cv2", "yaml"} <= set(imported)
    text = "import a.b\ndef f():\n    from c.d import e\n    if e:\n        import g as h\n"
    assert sorted(names_in(text)) == ["a", "c", "g"]
