"""What mkdocs calls while it builds the site (``hooks`` in ``mkdocs.yml``)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
# Files of the theme, by their place in the site.
THEME = {
    "stylesheets/site.css": ROOT / "website/site.css",
    "javascripts/iframe-worker.js": ROOT / "website/iframe-worker.js",
}
# mkdocs puts this folder first, where its files would hide others of their names, and not the root.
_others = [path for path in sys.path if Path(path).resolve() not in (ROOT, ROOT / "website")]
sys.path[:] = [str(ROOT), *_others]

from launcher.cli import quiet_imports  # noqa: E402

quiet_imports()

from website import api, cluster_profile, commands, drawings, links, places, settings, tables  # noqa: E402


def generated() -> dict[str, str]:
    """Return the pages that are made from the code or stand in the root, by place in the site."""
    pages = {
        place: (ROOT / source).read_text(encoding="utf-8")
        for place, source in places.FROM_ELSEWHERE.items()
    }
    for module in (commands, settings, cluster_profile, api):
        pages |= module.pages()
    return pages


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and the files of the repository that pages link to."""
    pages = generated()
    written = {file.src_uri: file.content_string for file in files.documentation_pages()}
    added: dict[str, str | Path] = {**pages, **places.linked_files({**written, **pages}, ROOT)}
    added |= THEME
    for place, what in added.items():
        if isinstance(what, Path):
            files.append(File.generated(config, place, abs_src_path=str(what)))
        else:
            files.append(File.generated(config, place, content=what))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Let links to files lead to their place in the site, by title, and draw the graphs."""
    place: str = page.file.src_uri

    def title(target: str) -> str | None:
        file = files.get_file_from_path(links.resolved(target, place))
        return None if file is None else links.heading(file.content_string)

    text = links.titled(places.with_places(markdown, place, ROOT), title)
    return drawings.drawn(tables.with_plain_bars(text))
