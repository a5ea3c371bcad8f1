"""Files of the repository that pages link to are in the site, and links lead there."""

from __future__ import annotations

from pathlib import Path

import pytest

from website.places import linked_files, place_of, shown, source_of, with_places


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in {
        "README.md": "# Start\n[guide](docs/guide.md) [rules](CONTRIBUTING.md#a) ![p](docs/p.png)",
        "CONTRIBUTING.md": "# Rules",
        "docs/guide.md": "# Guide\n[start](../README.md) [c](../configs/a.py) [d](../configs)"
        " [n](../notes/n.md) [i](../more/i.png) [gone](../gone.py)",
        "configs/a.py": 'text = """\n```\n"""\n',
        "configs/b.py": "",
        "notes/n.md": "# Note\n[b](../configs/b.py)",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    for name in ("docs/p.png", "more/i.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\x89PNG\xff")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("README.md", "index.md"),
        ("CONTRIBUTING.md", "contributing.md"),
        ("docs/guide.md", "guide.md"),
        ("docs/p.png", "p.png"),
        ("configs/a.py", "files/configs/a.py.md"),
        ("configs", "files/configs/index.md"),
        ("notes/n.md", "files/notes/n.md"),
        ("more/i.png", "files/more/i.png"),
        ("gone.py", None),
        ("../README.md", None),
    ],
)
def test_every_file_has_one_place(source: str, place: str | None, root: Path) -> None:
    assert place_of(source, root) == place


def test_the_files_that_pages_link_to_are_added_and_those_that_they_link_to(root: Path) -> None:
    pages = {p: (root / source_of(p)).read_text() for p in ("index.md", "guide.md")}
    found = linked_files(pages, root)
    assert set(found) == {
        "files/configs/a.py.md",
        "files/configs/b.py.md",
        "files/configs/index.md",
        "files/more/i.png",
        "files/notes/n.md",
    }
    assert found["files/more/i.png"] == root / "more/i.png"


def test_links_lead_to_the_places_and_a_link_to_nothing_stays(root: Path) -> None:
    start = with_places((root / "README.md").read_text(), "index.md", root)
    assert "[guide](guide.md) [rules](contributing.md#a) ![p](p.png)" in start
    guide = with_places((root / "docs/guide.md").read_text(), "guide.md", root)
    assert "[start](index.md) [c](files/configs/a.py.md) [d](files/configs/index.md)" in guide
    assert "[n](files/notes/n.md) [i](files/more/i.png) [gone](../gone.py)" in guide
    note = with_places((root / "notes/n.md").read_text(), "files/notes/n.md", root)
    assert "[b](../configs/b.py.md)" in note


def test_a_file_is_shown_as_it_is_and_a_folder_as_a_list(root: Path) -> None:
    text = shown("configs/a.py", root)
    assert isinstance(text, str)
    assert '---\n# configs/a.py\n\n````python\ntext = """\n```\n"""\n' in text
    assert str(shown("configs", root)).endswith("---\n# configs/\n\n- `a.py`\n- `b.py`\n")
