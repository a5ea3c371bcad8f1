"""Every link on a page leads to a file and a heading that are there, and every path is one."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, blocks, inline_code
from website.links import links_of

FOLDERS = (
    *("benchmarks", "configs", "docs", "dq", "examples", "launcher", "setup", "slurm", "tests"),
    "website",
)
_PATH = re.compile(rf"(?<![\w./~-])(?:{'|'.join(FOLDERS)})/[\w./*{{}},-]*[\w/*}}]")


def named(page: Path) -> set[str]:
    """Return the paths of this repository that a page names, in its text and in its blocks."""
    code = [*inline_code(page), *(block.text for block in blocks(page))]
    return {path for text in code for path in _PATH.findall(text)}


def expanded(path: str) -> list[str]:
    """Return the paths that ``a/{b,c}.py`` stands for."""
    parts = [part.split(",") for part in re.split(r"[{}]", path)]
    return ["".join(choice) for choice in itertools.product(*parts)]


def is_there(path: str) -> bool:
    return any(ROOT.glob(path)) if "*" in path else (ROOT / path).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    wrong = []
    for link in links_of(page.read_text()):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if re.match(r"[a-z]+:", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_path_of_the_repository_exists(page: Path) -> None:
    wrong = [path for path in named(page) if not all(map(is_there, expanded(path)))]
    assert not wrong


def test_pages_name_many_paths() -> None:
    assert sum(len(named(page)) for page in PAGES) > 100
