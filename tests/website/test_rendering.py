"""A page has the same parts and the same text in the site as on a code host."""

from __future__ import annotations

import functools
import re
from html.parser import HTMLParser

import markdown
import pytest
from markdown_it import MarkdownIt
from mkdocs.config import load_config

from tests.docs.pages import PAGES, ROOT
from website import cluster_profile, commands, settings
from website.tables import with_plain_bars

PARTS = ("h1", "h2", "h3", "h4", "ul", "ol", "li", "table", "tr", "th", "td", "pre", "strong")
GENERATED = {**commands.pages(), **settings.pages(), **cluster_profile.pages()}
TEXTS = {str(p.relative_to(ROOT)): p.read_text() for p in PAGES} | GENERATED


class Parts(HTMLParser):
    """The parts of a page in order, each with its text without spaces."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in PARTS:
            self.found.append(f"<{tag}>")

    def handle_data(self, data: str) -> None:
        text = "".join(data.split())
        if text and self.found and not self.found[-1].startswith("<"):
            self.found[-1] += text
        elif text:
            self.found.append(text)


def parts(html: str) -> list[str]:
    parser = Parts()
    parser.feed(re.sub(r'<a class="headerlink".*?</a>', "", html))
    return parser.found


@functools.cache
def of_the_site() -> markdown.Markdown:
    config = load_config(str(ROOT / "mkdocs.yml"))
    return markdown.Markdown(
        extensions=config.markdown_extensions, extension_configs=config.mdx_configs
    )


def in_the_site(text: str) -> list[str]:
    return parts(of_the_site().reset().convert(with_plain_bars(text)))


def on_a_code_host(text: str) -> list[str]:
    return parts(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


@pytest.mark.parametrize("name", TEXTS)
def test_a_page_is_the_same(name: str) -> None:
    """If a list or a table is missing: a blank line before it, four spaces inside an item."""
    assert in_the_site(TEXTS[name]) == on_a_code_host(TEXTS[name])


@pytest.mark.parametrize(
    "text", ["text\n- item", "- item\n  - below", "- item\n\n  | a |\n  | - |"]
)
def test_a_page_that_is_not_the_same_is_found(text: str) -> None:
    assert in_the_site(text) != on_a_code_host(text)
