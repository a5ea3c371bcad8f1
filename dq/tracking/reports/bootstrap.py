"""Whether a difference between two detectors is more than chance: a paired bootstrap over images.

Both detectors are evaluated on the same images, drawn with repetition, and the differences of
COCO's metric over many draws are its distribution (Efron and Tibshirani 1993, chapter 13). Pairing
removes what both detectors find easy or hard in the same images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dq.tracking.record.matches import Matches

DRAWS, SEED = 400, 0
# The middle 95 % of the draws.
OUTER = (2.5, 97.5)
RECALLS = np.linspace(0.0, 1.0, 101)
# Draws are computed together as long as an array has no more values than this.
MOST_VALUES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The difference of two detectors' metrics.

    Attributes:
        value: Second minus first, in points.
        low: Lower end of the interval that has 95 % of the draws, in points.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def is_chance(self) -> bool:
        """Whether the interval includes no difference."""
        return self.low <= 0.0 <= self.high

    @property
    def in_table(self) -> str:
        """The text for a table, whose title names the unit."""
        return self._text("")

    def __str__(self) -> str:
        return self._text(" points")

    def _text(self, unit: str) -> str:
        text = f"{self.value:+.2f}{unit} ({self.low:+.2f} to {self.high:+.2f})"
        return f"{text}, within chance" if self.is_chance else text


def difference(first: Matches, second: Matches, draws: int = DRAWS) -> Difference | None:
    """Return the difference of COCO's metric between two evaluations of the same images.

    Args:
        first: The evaluation of one detector.
        second: That of the other.
        draws: Number of draws.

    Returns:
        None if they are not of the same images and annotations.
    """
    return mean_difference([(first, second)], draws)


def mean_difference(
    pairs: Sequence[tuple[Matches, Matches]], draws: int = DRAWS
) -> Difference | None:
    """Return the mean difference of several pairs, such as one for each seed of a training.

    All pairs are evaluated on the same draws of images, so the interval shows how much the mean
    depends on the choice of the images.

    Args:
        pairs: Evaluations ``(first, second)``; at least one pair.
        draws: Number of draws.

    Returns:
        None if they are not all of the same images and annotations.
    """
    one = pairs[0][0]
    if not all(_same_images(one, other) for pair in pairs for other in pair):
        return None
    number = len(one.names)
    generator = np.random.default_rng(SEED)
    drawn = [generator.integers(0, number, number) for _ in range(draws)]
    # The first row is all images once.
    weights = np.stack([np.ones(number), *(np.bincount(d, minlength=number) for d in drawn)])
    each = [mean_precisions(b, weights) - mean_precisions(a, weights) for a, b in pairs]
    found = 100 * np.mean(each, axis=0)
    low, high = np.percentile(found[1:], OUTER)
    return Difference(value=float(found[0]), low=float(low), high=float(high))


def _same_images(one: Matches, other: Matches) -> bool:
    same = np.array_equal(one.names, other.names)
    return same and np.array_equal(one.annotations, other.annotations)


def mean_precisions(matches: Matches, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return COCO's mean average precision, 0 to 1, with each image counted this many times.

    Args:
        matches: The evaluation.
        weights: By draw and image, ``(draws, images)``.

    Returns:
        By draw, ``(draws,)``.
    """
    annotations = weights @ matches.annotations
    # A class without annotations in a draw does not count there.
    there = annotations > 0
    total = np.zeros(len(weights))
    for label, part in _by_class(matches):
        own = there[:, label]
        total[own] += _precisions(matches, part, weights[own], annotations[own, label])
    total /= np.maximum(there.sum(axis=1), 1)
    return total


def _by_class(matches: Matches) -> Iterator[tuple[int, slice]]:
    bounds = np.searchsorted(matches.label, np.arange(matches.annotations.shape[1] + 1))
    for label in range(matches.annotations.shape[1]):
        yield label, slice(bounds[label], bounds[label + 1])


def _precisions(
    matches: Matches,
    part: slice,
    weights: NDArray[np.float64],
    annotations: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return one class's average precision over all IoU thresholds, as COCO interpolates.

    Recall only rises at detections that match something, so only these are looked at.
    """
    matching = matches.hit[part].any(axis=1)
    found = np.zeros(len(weights))
    if not matching.any():
        return found
    hit = (matches.counted[part] & matches.hit[part])[matching].astype(np.float64)
    # Without annotations to ignore, all thresholds count the same detections: a single column.
    counted, column = np.unique(matches.counted[part], axis=1, return_inverse=True)
    step = max(1, MOST_VALUES // max(counted.size, hit.size))
    for start in range(0, len(weights), step):
        few = slice(start, start + step)
        each = weights[few, matches.image[part], None]
        all_of_them = np.cumsum(each * counted, axis=1)[:, matching][..., column.ravel()]
        hits = np.cumsum(each[:, matching] * hit, axis=1)
        precision = hits / np.maximum(all_of_them, np.finfo(np.float64).eps)
        # The best precision at this recall or more.
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # How many of COCO's recalls each detection is the first to reach.
        recall = hits / annotations[few, None, None]
        reached = np.searchsorted(RECALLS, recall, side="right")
        first = np.diff(reached, axis=1, prepend=0)
        found[few] = (precision * first).sum(axis=1).mean(axis=1) / len(RECALLS)
    return found
