"""Imports between packages go one way, no folder grows too large, the drawing is up to date."""

from __future__ import annotations

import pytest

from tests.house.drawing import PAGE, page
from tests.house.order import ORDER, ROOT, imported, packages_of

# Most files in a folder, without its __init__.py; more parts are hard to survey.
MOST_FILES = 15


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


@pytest.mark.parametrize("place", ["dq", "launcher", "slurm", "tests", "website"])
def test_no_folder_is_too_full(place: str) -> None:
    for folder in {path.parent for path in (ROOT / place).rglob("*.py")}:
        number = len([path for path in folder.glob("*.py") if path.name != "__init__.py"])
        assert number <= MOST_FILES, f"{folder.relative_to(ROOT)} has {number} files"


def test_the_drawing_is_up_to_date() -> None:
    assert PAGE.read_text() == page(PAGE.read_text()), "run python -m tests.house.drawing"
