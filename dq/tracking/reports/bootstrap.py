"""Whether a difference between two detectors is more than chance: a paired bootstrap over images.

Both detectors are evaluated on the same images, drawn with repetition, and the differences of
COCO's metric over many draws are its distribution (Efron and Tibshirani 1993, chapter 13). Pairing
removes what both detectors find easy or hard in the same images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dq.tracking.record.matches import Matches

DRAWS, SEED = 400, 0
# The middle 95 % of the draws.
OUTER = (2.5, 97.5)
RECALLS = np.linspace(0.0, 1.0, 101)


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

    def __str__(self) -> str:
        text = f"{self.value:+.2f} points ({self.low:+.2f} to {self.high:+.2f})"
        return f"{text}, within chance" if self.is_chance else text


def difference(first: Matches, second: Matches, draws: int = DRAWS) -> Difference | None:
    """Return the difference of COCO's metric between two evaluations of the same images.

    Args:
        first: Of one detector.
        second: Of the other.
        draws: Number of draws.

    Returns:
        None if they are not of the same images and annotations.
    """
    same = np.array_equal(first.names, second.names)
    if not same or not np.array_equal(first.annotations, second.annotations):
        return None
    number = len(first.names)
    generator = np.random.default_rng(SEED)
    one = np.ones(number)
    value = mean_precision(second, one) - mean_precision(first, one)
    found = []
    for _ in range(draws):
        drawn = generator.integers(0, number, number)
        weights = np.bincount(drawn, minlength=number).astype(np.float64)
        found.append(mean_precision(second, weights) - mean_precision(first, weights))
    low, high = np.percentile(found, OUTER)
    return Difference(value=100 * value, low=100 * float(low), high=100 * float(high))


def mean_precision(matches: Matches, weights: NDArray[np.float64]) -> float:
    """Return COCO's mean average precision, 0 to 1, with each image counted this many times.

    Args:
        matches: Of the evaluation.
        weights: By image, ``(images,)``.
    """
    annotations = weights @ matches.annotations
    values = [
        _precision(matches, part, weights, annotations[label])
        for label, part in _by_class(matches)
        if annotations[label] > 0
    ]
    return float(np.mean(values)) if values else 0.0


def _by_class(matches: Matches) -> Iterator[tuple[int, slice]]:
    bounds = np.searchsorted(matches.label, np.arange(matches.annotations.shape[1] + 1))
    for label in range(matches.annotations.shape[1]):
        yield label, slice(bounds[label], bounds[label + 1])


def _precision(
    matches: Matches, part: slice, weights: NDArray[np.float64], annotations: float
) -> float:
    """Return the average precision of one class over all IoU thresholds, as COCO interpolates."""
    each = weights[matches.image[part]][:, None] * matches.counted[part]
    if not len(each):
        return 0.0
    hits = np.cumsum(each * matches.hit[part], axis=0)
    all_of_them = np.cumsum(each, axis=0)
    precision = hits / np.maximum(all_of_them, np.finfo(np.float64).eps)
    # The best precision at this recall or more.
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall = hits / annotations
    total = 0.0
    for threshold in range(recall.shape[1]):
        places = np.searchsorted(recall[:, threshold], RECALLS, side="left")
        inside = places[places < len(recall)]
        total += precision[inside, threshold].sum() / len(RECALLS)
    return float(total / recall.shape[1])
