"""The page of ``launcher show``: tables and pictures, in one folder, without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dq.tracking.pictures.sheet import color_of
from dq.tracking.reports.html_report import STYLE

_MORE = """
.swatch{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:7px}
figure{margin:0 0 22px}figcaption{font-size:13px;color:#5a6678;word-break:break-all}
figcaption b{color:#1d2433}figcaption ul{margin:4px 0 0;padding-left:18px;word-break:normal}
a.whole img{cursor:zoom-in}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRow:
    """A class in the table of the split.

    Attributes:
        name: Name of the class.
        boxes: Number of its boxes.
        images: Number of images with one.
        size: Median width and height in pixels; None without a box.
    """

    name: str
    boxes: int
    images: int
    size: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """A picture.

    Attributes:
        file: Name of its file in the page's folder.
        name: Name of the image that is drawn.
        lines: What is said about it.
        is_wide: Whether it has several columns, so that no other fits beside it.
    """

    file: str
    name: str
    lines: Sequence[str] = ()
    is_wide: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorPart:
    """What is said about the anchors of a head.

    Attributes:
        head: Its name.
        lines: Sentences.
        file: Name of the plot's file; None without boxes.
        rows: Class, boxes, mean IoU, share of the boxes without a good anchor.
    """

    head: str
    lines: Sequence[str]
    file: str | None
    rows: Sequence[tuple[str, int, float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowPage:
    """All of the page.

    Attributes:
        title: Config and split.
        command: The command line.
        summary: Sentences about the split.
        classes: Rows of the table of classes, by label.
        shots_title: What the pictures are.
        legend: What the pictures' outlines mean; may be empty.
        shots: Pictures of images.
        samples: What the training gets; may be empty.
        anchors: The part about each head.
        anchors_note: What is said where no head has anchors, or where boxes are missing in the
            comparison; empty if there is nothing to say.
    """

    title: str
    command: str
    summary: Sequence[str]
    classes: Sequence[ClassRow]
    shots_title: str
    legend: Sequence[str]
    shots: Sequence[Shot]
    samples: Sequence[Shot]
    anchors: Sequence[AnchorPart]
    anchors_note: str


def show_page(page: ShowPage) -> str:
    """Return the page as HTML; its pictures are files beside it."""
    parts = [
        _section("split", "The split", _lines(page.summary) + _classes(page.classes)),
        _section("images", page.shots_title, _lines(page.legend) + _shots(page.shots)),
    ]
    if page.samples:
        parts.append(_section("samples", "What the detector is given", _shots(page.samples)))
    note = _lines([page.anchors_note] if page.anchors_note else [])
    anchors = note + "".join(map(_anchors, page.anchors))
    parts.append(_section("anchors", "Anchors against boxes", anchors))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(page.title)}</title><style>{STYLE}{_MORE}</style></head>"
        f"<body><main><h1>{escape(page.title)}</h1>"
        f'<p class="note"><code>{escape(page.command)}</code></p>{"".join(parts)}'
        "</main></body></html>\n"
    )


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}"><h2>{escape(title)}</h2>{body}</section>'


def _lines(lines: Sequence[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _classes(rows: Sequence[ClassRow]) -> str:
    body = "".join(
        f'<tr><td class="n">{number}</td>'
        f'<td><span class="swatch" style="background:{color_of(number)}"></span>'
        f'{escape(row.name)}</td><td class="n">{row.boxes:,}</td><td class="n">{row.images:,}</td>'
        f'<td class="n">{_size(row.size)}</td></tr>'
        for number, row in enumerate(rows)
    )
    head = '<th class="n">label</th><th>class</th><th class="n">boxes</th>'
    head += '<th class="n">images</th><th class="n">median width x height</th>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _size(size: tuple[float, float] | None) -> str:
    return "—" if size is None else f"{size[0]:.0f} x {size[1]:.0f}"


def _shots(shots: Sequence[Shot]) -> str:
    text = "".join(map(_shot, shots))
    return text if any(shot.is_wide for shot in shots) else f'<div class="grid">{text}</div>'


def _shot(shot: Shot) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in shot.lines)
    said = f"<ul>{lines}</ul>" if lines else ""
    file, name = escape(shot.file, quote=True), escape(shot.name)
    return (
        f'<figure><a class="whole" href="{file}"><img class="shot" alt="{name}" src="{file}"></a>'
        f"<figcaption><b>{name}</b>{said}</figcaption></figure>"
    )


def _anchors(part: AnchorPart) -> str:
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{boxes:,}</td><td class="n">{mean:.2f}</td>'
        f'<td class="n {"bad" if share > 0.1 else ""}">{100 * share:.1f} %</td></tr>'
        for name, boxes, mean, share in part.rows
    )
    head = '<th>class</th><th class="n">boxes</th><th class="n">mean best IoU</th>'
    head += '<th class="n">without a good anchor</th>'
    picture = "" if part.file is None else f'<img class="plot" alt="anchors" src="{part.file}">'
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if rows else ""
    return f"<h3>{escape(part.head)}</h3>{_lines(part.lines)}{picture}{table}"
