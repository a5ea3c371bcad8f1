"""Write a plot into a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dq.whole_file import drafts


def write_figure(path: Path, figure: Any, *, dpi: int = 120) -> None:
    """Write a figure of matplotlib as PNG, whole or not at all, and close it.

    Args:
        path: The file; its folder exists.
        figure: Made by ``pyplot``.
        dpi: Pixels per inch.
    """
    from matplotlib import pyplot

    try:
        with drafts(path) as (draft,):
            figure.savefig(draft, format="png", dpi=dpi)
    finally:
        pyplot.close(figure)
