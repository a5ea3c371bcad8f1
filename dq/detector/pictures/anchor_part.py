"""What the page says about how a head's anchors fit the boxes of a split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dq.counted import counted, form
from dq.detector.pictures.anchors import Fit
from dq.detector.pictures.samples import names_of
from dq.tracking.reports.anchor_plot import anchor_plot
from dq.tracking.reports.show_page import AnchorPart
from dq.whole_file import write_whole

# A larger share of boxes without a good anchor is worth a hint.
MUCH = 0.1


def anchor_part(path: Path, fit: Fit, classes: Sequence[str]) -> AnchorPart:
    """Write the plot of a head's anchors, and return what is said about them.

    Args:
        path: The PNG file; not written without boxes.
        fit: Of the head's anchors.
        classes: Their names.
    """
    anchors = fit.anchors
    head = anchors.head or "head"
    total = sum(len(base) for base in anchors.base)
    strides = ", ".join(f"{stride[0]:g}" for stride in anchors.strides)
    lines = [
        f"{counted(total, 'anchor[s]')} per position of {counted(len(anchors.base), 'level[s]')},"
        f" strides {strides}."
    ]
    if not len(fit.best):
        return AnchorPart(head=head, lines=[*lines, "There are no boxes."], file=None, rows=())
    lines += _verdict(fit)
    levels = [
        (stride[0], base[:, 2:] - base[:, :2])
        for stride, base in zip(anchors.strides, anchors.base, strict=True)
    ]
    write_whole(path, anchor_plot(fit.best, fit.shapes, levels, anchors.good))
    rows = []
    for label in np.unique(fit.labels).tolist():
        own = fit.best[fit.labels == label]
        name = names_of(classes, [label])[0]
        rows.append((name, len(own), float(own.mean()), float((own < anchors.good).mean())))
    return AnchorPart(head=head, lines=lines, file=path.name, rows=rows)


def _verdict(fit: Fit) -> Iterator[str]:
    good, least = fit.anchors.good, fit.anchors.least
    yield (
        f"{len(fit.best):,} {form(len(fit.best), 'box[es]')} in the network's input: mean best"
        f" IoU of {fit.best.mean():.2f}; {100 * fit.without_good:.1f} % have no good anchor (IoU"
        f" of at least {good:g})."
    )
    if fit.untrained and least is not None and least < good:
        yield (f"{100 * fit.untrained:.1f} % are below {least:g}: no anchor is trained on them.")
    shapes_fit = (fit.centered < good).mean() <= MUCH
    if fit.without_good > MUCH and shapes_fit:
        yield (
            f"Their shapes fit: at the boxes' centers the mean would be {fit.centered.mean():.2f}."
            " The cells of their levels are too far apart; anchors of these sizes on levels with"
            " smaller strides, or a larger input, would fit more boxes."
        )
    elif fit.without_good > MUCH:
        yield (
            f"At the boxes' centers the mean would be {fit.centered.mean():.2f}: anchors of other"
            " sizes or ratios would fit more boxes; `launcher init` fits them to a folder's boxes."
        )
