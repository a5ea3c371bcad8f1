"""README.md and docs: every link leads somewhere, and every command on them exists."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from launcher.cli import COMMANDS
from tests.house.order import ROOT

PAGES = [*ROOT.glob("docs/*.md"), *ROOT.glob("*.md"), *ROOT.glob("examples/*.md")]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if "://" not in link and not (
            target.exists() and (not anchor or anchor in anchors(target))
        ):
            wrong.append(link)
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_exists(page: Path) -> None:
    text = page.read_text()
    words = re.findall(r"-m launcher (?:--\S+ )*([a-z]+)\b(?!/)", text)
    words += re.findall(r"`launcher ([a-z]+)\b", text)
    assert [word for word in words if word not in COMMANDS] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_module_that_is_run_exists(page: Path) -> None:
    names = re.findall(r"python -m ((?:benchmarks|tests)[\w.]*)", page.read_text())
    assert [name for name in names if importlib.util.find_spec(name) is None] == []
