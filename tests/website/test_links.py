"""Links of a page: found outside of code, changed, named by a title."""

from __future__ import annotations

from website.links import heading, links_of, relative, resolved, rewritten, targets, titled

TEXT = """# A title
See [one](a.md#x), [two](https://b.org/c.md), [three](#here) and `[four](d.md)`.

```python
table[0](e.md)
```

[five]: ../f.py
<img src="docs/g.png"> <a href="h.md">h</a>
"""


def test_links_in_code_are_none() -> None:
    assert list(links_of(TEXT)) == [
        *("a.md#x", "https://b.org/c.md", "#here", "../f.py", "docs/g.png", "h.md"),
    ]
    assert list(targets(TEXT)) == ["a.md", "../f.py", "docs/g.png", "h.md"]


def test_only_links_to_files_are_changed_and_keep_their_anchor() -> None:
    changed = rewritten(TEXT, lambda target: f"new/{target}")
    assert (
        "[one](new/a.md#x), [two](https://b.org/c.md), [three](#here) and `[four](d.md)`" in changed
    )
    assert "table[0](e.md)" in changed
    assert "[five]: new/../f.py" in changed
    assert '<img src="new/docs/g.png"> <a href="new/h.md">' in changed
    assert rewritten(TEXT, lambda target: target) == TEXT


def test_a_link_named_by_a_path_gets_the_title_of_its_page() -> None:
    text = "[docs/a.md](docs/a.md#x), [b.md](b.md), [words](docs/a.md), `[a.md](docs/a.md)`"
    found = titled(text, {"docs/a.md": "A"}.get)
    assert found == "[A](docs/a.md#x), [b.md](b.md), [words](docs/a.md), `[a.md](docs/a.md)`"


def test_paths_between_pages() -> None:
    assert resolved("../README.md", "docs/a.md") == "README.md"
    assert resolved("b.md", "docs/a.md") == "docs/b.md"
    assert relative("index.md", "reference/commands.md") == "../index.md"
    assert relative("a.md", "index.md") == "a.md"
    assert heading("text\n## no\n# yes\n# other") == "yes"
    assert heading("nothing") is None
