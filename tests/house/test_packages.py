"""The order of the packages inside each part: arrows go one way, and no folder grows too full."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What a folder may hold, its __init__.py apart; a subject has no more parts than one can overlook.
MOST_FILES = 15

# Each package, the lowest first, with those that it may import.
ORDER: dict[str, dict[str, tuple[str, ...]]] = {
    "dq/quant": {
        "numerics": (),
        "kernels": ("numerics",),
        "observers": ("numerics",),
        "quantizers": ("numerics", "kernels", "observers"),
        "recipes": ("numerics", "observers", "quantizers"),
        "graph": ("kernels", "quantizers", "recipes"),
        "training": ("numerics", "quantizers", "graph"),
        "analysis": ("numerics", "quantizers", "graph", "training"),
        "ptq": ("numerics", "observers", "quantizers", "recipes", "graph", "analysis"),
        "integer": ("numerics", "kernels", "quantizers", "graph"),
        "export": ("numerics", "graph", "integer"),
        "verify": ("graph",),
        "model": ("graph", "recipes", "quantizers", "ptq", "integer", "export"),
    },
}


def packages_of(place: str) -> set[str]:
    return {p.name for p in (ROOT / place).iterdir() if (p / "__init__.py").is_file()}


def imported(path: Path, place: str) -> set[str]:
    """Return the packages of ``place`` that a file imports, anywhere in it."""
    prefix = place.replace("/", ".") + "."
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {
        name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)
    }


@pytest.mark.parametrize("place", ORDER)
def test_every_package_has_its_place_in_the_order(place: str) -> None:
    assert packages_of(place) == set(ORDER[place])
    below: set[str] = set()
    for name, allowed in ORDER[place].items():
        assert set(allowed) <= below, f"{place}/{name} may import what comes after it"
        below.add(name)


@pytest.mark.parametrize(
    ("place", "name"), [(place, name) for place, order in ORDER.items() for name in order]
)
def test_arrows_go_one_way(place: str, name: str) -> None:
    used: set[str] = set()
    for path in sorted((ROOT / place / name).rglob("*.py")):
        others = (imported(path, place) & set(ORDER[place])) - {name}
        assert others <= set(ORDER[place][name]), f"{path.relative_to(ROOT)} imports {others}"
        used |= others
    unused = set(ORDER[place][name]) - used
    assert not unused, f"{place}/{name} does not import {unused}; the order can say so"


@pytest.mark.parametrize("place", ORDER)
def test_no_folder_is_too_full(place: str) -> None:
    for folder in {path.parent for path in (ROOT / place).rglob("*.py")}:
        number = len([path for path in folder.glob("*.py") if path.name != "__init__.py"])
        assert number <= MOST_FILES, f"{folder.relative_to(ROOT)} has {number} files"
