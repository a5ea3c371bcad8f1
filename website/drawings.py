"""Draw the graphs of a page as SVG.

A code host draws blocks of ``mermaid`` itself. In a site it takes a script from
the network. Only what our pages use is known: nodes, and arrows from bottom to top.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from statistics import mean

_BLOCK = re.compile(r"^```mermaid\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_ARROW = re.compile(r"\s*(\w+) --> (\w+)\s*")
# In pixels.
_ROW, _GAP, _HEIGHT, _LETTER, _PADDING = 76, 26, 28, 8, 20
_SWEEPS = 8

_CAPTION = "Arrows lead to what is imported; the light ones follow from the others."

Edges = Mapping[str, Sequence[str]]


def drawn(text: str) -> str:
    """Return a page with each of its graphs as an SVG image.

    Raises:
        ValueError: A line of a graph is neither an arrow nor ``graph BT``.
    """
    return _BLOCK.sub(lambda block: svg(edges_of(block["text"])), text)


def edges_of(text: str) -> dict[str, list[str]]:
    """Return the arrows of a graph: for each node the nodes that its arrows lead to."""
    edges: dict[str, list[str]] = {}
    head, *lines = text.splitlines()
    if head.strip() != "graph BT":
        raise ValueError(f"a graph begins with {head!r}; only 'graph BT' is drawn")
    for line in lines:
        arrow = _ARROW.fullmatch(line)
        if arrow is None:
            raise ValueError(f"the line {line!r} of a graph is not of the form 'a --> b'")
        edges.setdefault(arrow[1], []).append(arrow[2])
        edges.setdefault(arrow[2], [])
    return edges


def rows_of(edges: Edges) -> list[list[str]]:
    """Return the nodes row by row: those without arrows first, every arrow leads to an earlier row.

    In a row the nodes are in an order in which arrows cross little: each as near as possible to the
    mean position of its neighbours.

    Raises:
        ValueError: The arrows form a circle.
    """
    levels: dict[str, int] = {}
    while len(levels) < len(edges):
        ready = [n for n, to in edges.items() if n not in levels and all(t in levels for t in to)]
        if not ready:
            raise ValueError("the arrows of a graph form a circle")
        levels |= {n: max((levels[t] + 1 for t in edges[n]), default=0) for n in ready}
    rows: list[list[str]] = [[] for _ in range(max(levels.values()) + 1)]
    for node, level in levels.items():
        rows[level].append(node)
    around = {node: list(to) for node, to in edges.items()}
    for node, targets in edges.items():
        for to in targets:
            around[to].append(node)
    for _ in range(_SWEEPS):
        place = {n: k - (len(row) - 1) / 2 for row in rows for k, n in enumerate(row)}
        for row in rows:
            row.sort(key=lambda n: mean(place[m] for m in around[n] or [n]))
    return rows


def implied(edges: Edges) -> set[tuple[str, str]]:
    """Return the arrows between nodes that a chain of other arrows connects too."""

    def reached(node: str) -> set[str]:
        return {node}.union(*(reached(to) for to in edges[node]))

    return {
        (node, to)
        for node, targets in edges.items()
        for to in targets
        if any(to in reached(other) for other in targets if other != to)
    }


def svg(edges: Edges) -> str:
    """Return a graph as an SVG image, the arrows that others imply lighter."""
    rows = rows_of(edges)
    widths = {node: _LETTER * len(node) + _PADDING for node in edges}
    total = max(sum(widths[n] + _GAP for n in row) for row in rows)
    center: dict[str, tuple[float, float]] = {}
    for level, row in enumerate(rows):
        left = (total - sum(widths[n] + _GAP for n in row)) / 2
        for node in row:
            center[node] = (left + (widths[node] + _GAP) / 2, level * _ROW + _HEIGHT)
            left += widths[node] + _GAP
    light = implied(edges)
    arrows = sorted(
        ((n, to) for n, targets in edges.items() for to in targets), key=lambda e: e not in light
    )
    parts = [_arrow(center[n], center[to], is_light=(n, to) in light) for n, to in arrows]
    parts += [_node(node, *center[node], widths[node]) for node in edges]
    height = (len(rows) - 1) * _ROW + 2 * _HEIGHT
    label = escape("; ".join(f"{n} imports {', '.join(to)}" for n, to in edges.items() if to))
    return (
        f'<div class="drawing"><svg xmlns="http://www.w3.org/2000/svg" role="img"'
        f' aria-label="{label}" width="{total:.0f}" viewBox="0 0 {total:.0f} {height}">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
        ' markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z"/></marker></defs>'
        f"{''.join(parts)}</svg><p>{_CAPTION}</p></div>"
    )


def _node(name: str, x: float, y: float, width: float) -> str:
    return (
        f'<rect x="{x - width / 2:.0f}" y="{y - _HEIGHT / 2:.0f}" width="{width:.0f}"'
        f' height="{_HEIGHT}" rx="4"/><text x="{x:.0f}" y="{y + 4:.0f}">{escape(name)}</text>'
    )


def _arrow(start: tuple[float, float], end: tuple[float, float], *, is_light: bool) -> str:
    (x0, y0), (x1, y1) = start, end
    y0, y1 = y0 - _HEIGHT / 2, y1 + _HEIGHT / 2
    bend = (y0 - y1) / 2
    kind = ' class="implied"' if is_light else ""
    return (
        f'<path{kind} marker-end="url(#tip)" d="M{x0:.0f},{y0:.0f} C{x0:.0f},{y0 - bend:.0f}'
        f' {x1:.0f},{y1 + bend:.0f} {x1:.0f},{y1:.0f}"/>'
    )
