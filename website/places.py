"""Where each file of the repository is in the site, and the pages that show files as they are.

Pages link to files of the repository as a code host shows them: ``../CONTRIBUTING.md``,
``../configs/bccd/yolox_160.py``. In the site such a file becomes a page or a copy, under ``files``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path

from website.links import relative, resolved, rewritten, targets

DOCS, FILES = "docs", "files"
# Pages that stand outside of `DOCS` in the repository, by their place in the site.
FROM_ELSEWHERE = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "code_of_conduct.md": "CODE_OF_CONDUCT.md",
    "examples.md": "examples/README.md",
}
_IN_SITE = {source: place for place, source in FROM_ELSEWHERE.items()}
_NOT_SEARCHED = "---\nsearch:\n  exclude: true\n---\n"
_LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".sh": "bash", ".cpp": "cpp"}


def source_of(place: str) -> str:
    """Return the path in the repository at which the text of a page of the site is written.

    Args:
        place: The page, relative to the site's folder, such as ``reference/commands.md``.
    """
    if place in FROM_ELSEWHERE:
        return FROM_ELSEWHERE[place]
    if place.startswith(f"{FILES}/"):
        return place.removeprefix(f"{FILES}/")
    return f"{DOCS}/{place}"


def place_of(source: str, root: Path) -> str | None:
    """Return the place in the site of a file or folder of the repository; None if it has none.

    Args:
        source: Relative to ``root``.
        root: Of the repository.
    """
    path = root / source
    if source.startswith("..") or not path.exists():
        return None
    if source in _IN_SITE:
        return _IN_SITE[source]
    if source.startswith(f"{DOCS}/"):
        return source.removeprefix(f"{DOCS}/")
    if path.is_dir():
        return f"{FILES}/{'' if source == '.' else source + '/'}index.md"
    if path.suffix == ".md":
        return f"{FILES}/{source}"
    return f"{FILES}/{source}" if _text_of(path) is None else f"{FILES}/{source}.md"


def with_places(text: str, place: str, root: Path) -> str:
    """Return a page's text with its links to files as the site has them.

    A link to nothing stays as it is, so that a strict build reports it.
    """
    source = source_of(place)

    def change(target: str) -> str:
        found = place_of(resolved(target, source), root)
        return target if found is None else relative(found, place)

    return rewritten(text, change)


def linked_files(pages: Mapping[str, str], root: Path) -> dict[str, str | Path]:
    """Return what the site needs for the files outside ``docs`` that pages link to.

    Args:
        pages: The text of every page by its place in the site.
        root: Of the repository.

    Returns:
        By its place in the site: the text of a page, or the path of a file to be copied.
    """
    found: dict[str, str | Path] = {}
    waiting = deque(pages.items())
    while waiting:
        place, text = waiting.popleft()
        source = source_of(place)
        for target in targets(text):
            path = resolved(target, source)
            there = place_of(path, root)
            if there is None or not there.startswith(f"{FILES}/") or there in found:
                continue
            found[there] = made = shown(path, root)
            if isinstance(made, str):
                waiting.append((there, made))
    return found


def shown(source: str, root: Path) -> str | Path:
    """Return the page that shows a file or the list of a folder; the path of one without text."""
    path = root / source
    if path.is_dir():
        names = sorted(p.name + "/" * p.is_dir() for p in path.iterdir() if p.name[0] not in "._")
        return _NOT_SEARCHED + "\n".join(
            [f"# {source}/", "", *(f"- `{name}`" for name in names), ""]
        )
    text = _text_of(path)
    if text is None:
        return path
    if path.suffix == ".md":
        return text
    fence = "```"
    while fence in text:
        fence += "`"
    language = _LANGUAGES.get(path.suffix, "text")
    return f"{_NOT_SEARCHED}# {source}\n\n{fence}{language}\n{text}\n{fence}\n"


def _text_of(path: Path) -> str | None:
    """Return the text of a file, None if it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
