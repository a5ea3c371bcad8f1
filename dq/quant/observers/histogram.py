"""A histogram over fixed logarithmic bins, and the observers that read a range out of one.

The bins are cut out of the float32 format itself: its sign, its exponent and the first bits of its
mantissa are the bin. So the edges never move, counts of any two histograms just add, and nothing
needs to be known of the data beforehand. A bin is less than 0.8 % wide, from 2^-24 to 2^24.
"""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from dq.native import dense
from dq.quant.kernels import histogram as kernels
from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.min_max import MovingAverageObserver, Range

# Bins per octave (a power of two) and number of octaves; other values count in the outermost bins.
MANTISSA_BITS = 7
FIRST_OCTAVE, NUM_OCTAVES = -24, 48
NUM_MAGNITUDES = NUM_OCTAVES << MANTISSA_BITS
NUM_BINS = 2 * NUM_MAGNITUDES
# The exponent and the first bits of the mantissa, as an integer, of the smallest bin of a sign.
FIRST_MAGNITUDE = (127 + FIRST_OCTAVE) << MANTISSA_BITS
DROPPED_BITS = 23 - MANTISSA_BITS


def bin_index(x: Tensor) -> Tensor:
    """Return the bin of each value, 0 to ``NUM_BINS - 1`` in ascending order; `NUM_BINS` for NaN.

    Args:
        x: Any shape and floating dtype; infinities count as NaN.

    Returns:
        int64 of the shape of ``x``.
    """
    x = x.float()
    bits = x.abs().view(torch.int32) >> DROPPED_BITS
    magnitude = (bits - FIRST_MAGNITUDE).clamp(0, NUM_MAGNITUDES - 1)
    index = torch.where(x < 0, NUM_MAGNITUDES - 1 - magnitude, NUM_MAGNITUDES + magnitude)
    return torch.where(torch.isfinite(x), index, NUM_BINS).long()


@lru_cache(maxsize=4)
def bin_edges(device: torch.device) -> Tensor:
    """Return the ``NUM_BINS + 1`` edges, ascending, float64; the middle one is 0."""
    steps = torch.arange(1, NUM_MAGNITUDES + 1, dtype=torch.float64)
    octave = torch.div(steps, 2**MANTISSA_BITS, rounding_mode="floor")
    fraction = steps / 2**MANTISSA_BITS - octave
    positive = torch.ldexp(1 + fraction, octave + FIRST_OCTAVE)
    edges = torch.cat([-positive.flip(0), positive.new_zeros(1), positive])
    return edges.to(device)


class HistogramObserver(MovingAverageObserver):
    """Count values in fixed bins while it collects; otherwise a moving average of extremes.

    Entering the phase CALIBRATE starts collecting. Fake-quantized training afterwards keeps the
    calibrated range: searching a histogram is too slow for every step, and a moving average of
    extremes would soon include the outliers that the search has left out. Before fake quantization
    (phase OBSERVE) the range is such a moving average. No counts are kept then, so checkpoints hold
    only the range.

    Args:
        momentum: As for `MovingAverageObserver`; used while it does not collect.
        spec: The integer format that the range is for.
        collects: Start with `start_collecting_`.

    Buffers ``counts`` and ``batch_counts``, int64 ``(NUM_BINS + 1,)`` (the last one for values that
    are not finite) or empty, ``lowest`` and ``highest``, float32 ``()``; not in checkpoints.
    """

    searches: ClassVar[bool] = True
    merge: ClassVar[dict[str, str]] = {
        "batch_min": "min",
        "batch_max": "max",
        "batch_counts": "sum",
    }
    counts: Tensor
    batch_counts: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(
        self,
        *,
        momentum: float = 0.01,
        spec: QuantSpec | None = None,
        collects: bool = True,
    ) -> None:
        super().__init__(momentum=momentum)
        self.spec = spec or QuantSpec()
        self.collects = False
        for name in ("counts", "batch_counts"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.int64), persistent=False)
        self.register_buffer("lowest", torch.tensor(torch.inf), persistent=False)
        self.register_buffer("highest", torch.tensor(-torch.inf), persistent=False)
        if collects:
            self.start_collecting_()

    def start_collecting_(self) -> None:
        """Start counting, from empty counts."""
        self.collects = True
        device = self.range_min.device
        self.counts = torch.zeros(NUM_BINS + 1, dtype=torch.int64, device=device)
        self.batch_counts = torch.zeros_like(self.counts)
        self.lowest.fill_(torch.inf)
        self.highest.fill_(-torch.inf)

    def begin_calibration_(self) -> None:
        """Start counting; existing counts are continued."""
        super().begin_calibration_()
        if not self.collects:
            self.start_collecting_()

    def end_calibration_(self) -> None:
        """Stop counting; see `stop_collecting_`."""
        super().end_calibration_()
        self.stop_collecting_()

    def stop_collecting_(self) -> None:
        """Stop counting and drop the counts; the range stays."""
        self.collects = False
        self.num_batches.zero_()
        self.counts, self.batch_counts = self.counts[:0].clone(), self.batch_counts[:0].clone()

    def observe(self, x: Tensor) -> None:
        """Record a batch; several calls before `update_` count as one batch.

        Args:
            x: Any shape; values that are not finite are left out.
        """
        if not self.collects:
            super().observe(x)
            return
        x = x.detach().float()
        weights = self._weights_for(x)
        if kernels.takes(self.batch_min) and kernels.takes(
            x := dense(x) if weights is None else x.contiguous()
        ):
            bins = FIRST_MAGNITUDE, DROPPED_BITS, NUM_MAGNITUDES
            record = self.batch_min, self.batch_max
            kernels.count_(x, bins, self.batch_counts, record, weights)
            return
        index = bin_index(x)
        times = torch.ones_like(index)
        if weights is not None:
            times = weights.reshape(-1, *[1] * (x.dim() - 2)).expand_as(index)
        self.batch_counts.scatter_add_(0, index.reshape(-1), times.reshape(-1))
        if x.numel():
            finite = torch.isfinite(x)
            low = torch.where(finite, x, torch.inf).amin()
            high = torch.where(finite, x, -torch.inf).amax()
            self.batch_min.copy_(torch.minimum(self.batch_min, low))
            self.batch_max.copy_(torch.maximum(self.batch_max, high))

    def _weights_for(self, x: Tensor) -> Tensor | None:
        """Return how often each channel's values count, int64; None if every value counts once."""
        return None

    @property
    def records_extremes(self) -> bool:
        """Whether `observe` only updates the extremes, as in a training after calibration."""
        return not self.collects and type(self).observe is HistogramObserver.observe

    @property
    def key(self) -> tuple[object, ...]:
        """Unique while there are counts, as histograms are not stacked; else a moving average's."""
        return (id(self),) if self.collects else super().key

    def prepare_update_(self) -> None:
        """Add the batch's counts to all counts."""
        if self.collects:
            self.counts += self.batch_counts
            self.batch_counts.zero_()
            self.lowest.copy_(torch.minimum(self.lowest, self.batch_min))
            self.highest.copy_(torch.maximum(self.highest, self.batch_max))

    def forget_(self) -> None:
        """Drop the batch's counts."""
        self.batch_counts.zero_()

    def updated(self, old: Range, batch: Range, number: Tensor) -> Range:
        """Return the range from `search`, or the averaged one; see `MinMaxObserver`."""
        if not self.collects:
            return super().updated(old, batch, number)
        low, high = self.search(self.counts[:-1].double(), self.lowest, self.highest)
        # Values outside all bins were not counted at their true position.
        limit = 2.0 ** (FIRST_OCTAVE + NUM_OCTAVES)
        beyond = (self.lowest < -limit) | (self.highest > limit)
        low = torch.where(beyond, self.lowest, low.to(old[0].dtype))
        high = torch.where(beyond, self.highest, high.to(old[1].dtype))
        return low.reshape(old[0].shape), high.reshape(old[1].shape)

    def search(self, counts: Tensor, lowest: Tensor, highest: Tensor) -> Range:
        """Return the range to represent, two scalars.

        Args:
            counts: float64 ``(NUM_BINS,)``, for the bins of `bin_edges`.
            lowest: The smallest value counted, ``()``.
            highest: The largest value counted, ``()``.
        """
        raise NotImplementedError


class PercentileObserver(HistogramObserver):
    """Range that leaves out the outermost values, half of them at each end.

    Args:
        percentile: Percentage of the values inside the range, such as 99.99.
        kwargs: As for `HistogramObserver`.

    Raises:
        ValueError: The percentile is not more than 50 and at most 100.
    """

    def __init__(self, *, percentile: float = 99.99, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        if not 50.0 < percentile <= 100.0:
            raise ValueError(f"percentile is {percentile}; use more than 50 and at most 100")
        self.percentile = percentile

    def search(self, counts: Tensor, lowest: Tensor, highest: Tensor) -> Range:
        """Return the two quantiles, interpolated inside their bins; see `HistogramObserver`."""
        outside = (1 - self.percentile / 100) / 2
        low = quantile(counts, outside).clamp(lowest, highest)
        high = quantile(counts, 1 - outside).clamp(lowest, highest)
        return low, high


def quantile(counts: Tensor, share: float) -> Tensor:
    """Return the value below which this share of the counted values lies, scalar float64."""
    edges = bin_edges(counts.device)
    cumulative = counts.cumsum(0)
    target = cumulative[-1:] * share
    index = torch.searchsorted(cumulative, target).clamp(max=NUM_BINS - 1)
    inside = (target - cumulative[index] + counts[index]) / counts[index].clamp(min=1)
    return (edges[index] + inside.clamp(0, 1) * (edges[index + 1] - edges[index])).squeeze(0)
