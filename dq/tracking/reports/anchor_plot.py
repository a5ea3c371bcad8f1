"""A plot of anchors against labelled boxes: how well they fit, and which do not."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
# More points would hide each other.
MOST_POINTS = 4000
GOOD, BAD = "#7b8794", "#d64545"


def anchor_plot(
    best: Numbers,
    shapes: Numbers,
    levels: Sequence[tuple[float, Numbers]],
    good: float,
) -> bytes:
    """Return a PNG: the boxes' best IoU, and their widths and heights with those of the anchors.

    Args:
        best: IoU of each box with its best anchor, ``(n,)``.
        shapes: Width and height of each box in the network's input, ``(n, 2)``.
        levels: Stride of each level, and width and height of its anchors, ``(k, 2)``.
        good: The IoU from which on an anchor is good.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    is_good = best >= good
    bins = np.linspace(0.0, 1.0, 41)
    left.hist([best[is_good], best[~is_good]], bins=bins, stacked=True, color=[GOOD, BAD],
              label=[f"with a good anchor: {is_good.sum():,}",
                     f"without: {(~is_good).sum():,}"])  # fmt: skip
    left.axvline(good, color="#1d2433", lw=1, ls="--")
    left.set(
        title="IoU of each box with its best anchor", xlabel="IoU", ylabel="boxes", xlim=(0, 1)
    )
    left.legend(fontsize=8, frameon=False, loc="upper left")
    every = max(1, -(-len(best) // MOST_POINTS))
    for chosen, color, size in ((is_good, GOOD, 6), (~is_good, BAD, 9)):
        points = shapes[chosen][::every].clip(min=0.5)
        right.scatter(points[:, 0], points[:, 1], s=size, color=color, alpha=0.5, lw=0)
    for number, (stride, anchors) in enumerate(levels):
        right.scatter(anchors[:, 0], anchors[:, 1], marker="+", s=70, lw=1.8, color=f"C{number}",
                      label=f"anchors, stride {stride:g}")  # fmt: skip
    right.set(title="Shapes in the network's input, in pixels", xlabel="width", ylabel="height",
              xscale="log", yscale="log")  # fmt: skip
    _plain_ticks(right)
    right.legend(fontsize=8, frameon=False, loc="upper left", ncols=1 + len(levels) // 6)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _plain_ticks(axis: Any) -> None:
    """Label the powers of two, which strides and sizes are, with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for each in (axis.xaxis, axis.yaxis):
        each.set_major_locator(LogLocator(base=2))
        each.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        each.set_minor_locator(NullLocator())
