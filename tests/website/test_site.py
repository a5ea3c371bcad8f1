"""The site is built without a warning, needs no network, and all its links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from posixpath import dirname, join, normpath
from urllib.parse import unquote

import pytest

import dq.dist
import dq.quant
from launcher.sections import SECTIONS
from tests.docs.pages import PAGES, ROOT
from website.places import place_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARN" not in done.stderr
    assert done.stdout == ""
    return folder


class Page(HTMLParser):
    """What a page loads, where its links lead, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {str(found[name]) for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        elif tag == "link" and found.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(str(found.get("href")))
        elif found.get("src"):
            self.loaded.append(str(found["src"]))


def pages(site: Path) -> Iterator[tuple[str, Page]]:
    for path in sorted(site.rglob("*.html")):
        if path.name != "404.html":  # Its links begin at the server's root.
            yield path.relative_to(site).as_posix(), Page(path.read_text())


def test_every_page_is_there(site: Path) -> None:
    places = {place_of(path.relative_to(ROOT).as_posix(), ROOT) or str(path) for path in PAGES}
    assert not [place for place in places if place.startswith("files/")]
    expected = {place.replace(".md", ".html") for place in places} | {"reference/commands.html"}
    found = {name for name, _ in pages(site)}
    assert expected <= found


def test_nothing_is_loaded_from_a_network(site: Path) -> None:
    for name, page in pages(site):
        for address in page.loaded:
            assert not re.match(r"(?:https?:)?//", address), f"{name} loads {address}"
            assert (site / normpath(join(dirname(name), address.partition("?")[0]))).is_file(), name
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", path.read_text()), path


def test_every_link_leads_to_a_page_and_an_anchor(site: Path) -> None:
    found = dict(pages(site))
    wrong = []
    for name, page in found.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = unquote(link).partition("#")
            target = normpath(join(dirname(name), path)) if path else name
            target = f"{target}/index.html" if (site / target).is_dir() else target
            exists = target in found or (site / target).is_file()
            if not exists or (anchor and anchor not in found[target].anchors):
                wrong.append(f"{name}: {link}")
    assert not wrong


def test_the_reference_and_the_library_are_in_the_site(site: Path) -> None:
    found = dict(pages(site))
    settings = (site / "reference/settings.html").read_text()
    for section, keys in SECTIONS.items():
        assert section.replace(".", "") in found["reference/settings.html"].anchors
        assert all(f"<code>{key}</code>" in settings for key in keys)
    for package in (dq.quant, dq.dist):
        anchors = found[f"api/{package.__name__[3:]}.html"].anchors
        for public in package.__all__:
            assert any(a.rpartition(".")[2] == public for a in anchors), public


def test_the_search_knows_all_pages_but_not_the_source(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text())
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert found == {name for name, _ in pages(site) if not name.startswith("files/")}


@pytest.mark.parametrize(
    ("name", "words", "found"),
    [
        ("index.html", "oscillation", "qat.html"),
        ("reference/settings.html", "freeze_above", "qat.html"),
        ("guide.html", "max_raised", "reference/settings.html"),
    ],
)
def test_a_browser_searches_without_a_server(
    name: str, words: str, found: str, site: Path, tmp_path: Path
) -> None:
    browser = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)
    if browser is None:
        pytest.skip("there is no Chromium; apt-get install chromium")
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/u")
    address = f"{(site / name).as_uri()}?q={words}"
    done = subprocess.run(
        [browser, *options, "--dump-dom", "--virtual-time-budget=20000", address],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    links = re.findall(r'<a href="([^"?]*)\?h=[^"]*" class="md-search-result__link"', done.stdout)
    assert (site / found).as_uri() in links, done.stderr[-1000:]
