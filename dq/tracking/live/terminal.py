"""Show the state of a run in a terminal: with rich if it is installed, else as plain lines."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

from dq.tracking.live.state import RUNNING, RunState
from dq.tracking.live.words import HEADS, Entry, entries, mark_of, stage_rows
from dq.tracking.record.json_file import json_text

if TYPE_CHECKING:
    from rich.console import RenderableType

_STYLES = {"good": "green", "busy": "bold cyan", "warn": "yellow", "bad": "bold red", "": ""}
_WIDTH = 10
# Bars and curves where the terminal's encoding has no blocks.
_ASCII = str.maketrans("█░▁▂▃▄▅▆▇", "#._..--==")


def as_json(state: RunState) -> str:
    """Return the state as JSON."""
    return json_text(asdict(state), indent=1)


def plain(state: RunState) -> str:
    """Return the state as lines of plain text."""
    lines = [state.folder]
    rows = stage_rows(state.stages)
    if rows:
        widths = [max(map(len, column)) for column in zip(HEADS, *rows, strict=True)]
        for row in (HEADS, *rows):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append(f"  {'  '.join(cells)}".rstrip())
    lines += [f"{each.head:<{_WIDTH}}{each.text}" for each in entries(state)]
    return "\n".join(lines) + "\n"


def follow(read: Callable[[], RunState], interval_s: float, stream: TextIO | None = None) -> None:
    """Show the state again and again until nothing writes the run any more.

    In a terminal with rich it is one picture that changes. Otherwise the state is printed once
    and then a line each time that something has changed.

    Args:
        read: Returns the state.
        interval_s: Seconds between two looks.
        stream: Where to; standard output by default.
    """
    stream = sys.stdout if stream is None else stream
    if can_draw(stream):
        _follow_live(read, interval_s, stream)
    else:
        _follow_in_lines(read, interval_s, stream)


def can_draw(stream: TextIO) -> bool:
    """Return whether a picture can be drawn there, and drawn again at the same place."""
    if not stream.isatty() or importlib.util.find_spec("rich") is None:
        return False
    from rich.console import Console

    return _has_blocks(stream) and not Console(file=stream).is_dumb_terminal


def _has_blocks(stream: TextIO) -> bool:
    try:
        "█".encode(stream.encoding or "utf-8")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def _write(text: str, stream: TextIO) -> None:
    stream.write(text if _has_blocks(stream) else text.translate(_ASCII))


def _follow_live(read: Callable[[], RunState], interval_s: float, stream: TextIO) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(file=stream)
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            state = read()
            live.update(panel(state), refresh=True)
            if not _goes_on(state):
                return
            time.sleep(interval_s)


def _follow_in_lines(read: Callable[[], RunState], interval_s: float, stream: TextIO) -> None:
    state = read()
    _write(plain(state), stream)
    stream.flush()
    said = _news(state)
    while _goes_on(state):
        time.sleep(interval_s)
        state = read()
        if (news := _news(state)) != said:
            said = news
            _write(f"{time.strftime('%H:%M:%S')} {_line(state)}\n", stream)
            stream.flush()


def _goes_on(state: RunState) -> bool:
    return state.is_alive or state.state == RUNNING


def _news(state: RunState) -> tuple[object, ...]:
    """Return what is worth a new line; that time passes is not."""
    step = None if state.progress is None else state.progress.step
    return state.current, state.state, state.is_alive, step


def _line(state: RunState) -> str:
    """Return what changes, on one line."""
    found = {each.head: each.text for each in entries(state) if each.head}
    heads = ("state", "progress", "loss", "error")
    return " | ".join(found[head] for head in heads if head in found)


def print_once(state: RunState, stream: TextIO | None = None) -> None:
    """Print the state once: with rich in a terminal, else as plain lines."""
    stream = sys.stdout if stream is None else stream
    if can_draw(stream):
        from rich.console import Console

        Console(file=stream).print(panel(state))
    else:
        _write(plain(state), stream)


def panel(state: RunState) -> RenderableType:
    """Return the state for rich; texts from files are never read as markup."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    stages = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for head in HEADS:
        stages.add_column(head, overflow="fold")
    for each, row in zip(state.stages, stage_rows(state.stages), strict=True):
        style = _STYLES[mark_of(each.state)]
        name = Text(row[0], style="bold" if each.name == state.current else "")
        stages.add_row(name, Text(row[1], style=style), *map(Text, row[2:]))
    lines = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    lines.add_column(style="dim", no_wrap=True)
    lines.add_column(overflow="fold")
    for entry in entries(state):
        lines.add_row(Text(entry.head), _text(entry))
    parts: list[Any] = [stages, Text(""), lines] if state.stages else [lines]
    foot = time.strftime("%H:%M:%S")
    return Panel(
        Group(*parts),
        title=Text(state.folder, style="bold"),
        subtitle=Text(foot, style="dim"),
        border_style=_STYLES[mark_of(state.state)],
        padding=(1, 2),
    )


def _text(entry: Entry) -> Any:
    from rich.text import Text

    text = Text(entry.text, style=_STYLES[entry.mark])
    if entry.head == "progress":
        text.highlight_regex(r"[█]+", "cyan")
        text.highlight_regex(r"[░]+", "dim")
    elif entry.head == "loss":
        text.highlight_regex(r"[▁▂▃▄▅▆▇█]+", "cyan")
    return text
