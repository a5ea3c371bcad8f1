"""Observers that search the range with the least error: mean square error or entropy."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dq.quant.kernels import histogram as kernels
from dq.quant.numerics.affine import scale_and_zero_point
from dq.quant.observers.histogram import HistogramObserver, bin_edges
from dq.quant.observers.min_max import Range

# Candidates for one end of the range, as shares of the extreme: from 100 % down to 1 %.
SHARES = tuple(0.5 ** (k / 6) for k in range(40))
# Candidates around the best end so far, as factors for it.
FINE = tuple(1 + k / 100 for k in range(-10, 11))
ENTROPY_BINS = 2048
# A bin narrower than this share of the scale counts as one value.
NARROW = 1e-3
# An end of a range that reaches less far than this share of its width is not clipped.
CHEAP = 0.1
# Weights of channels are integers from 1 to this, so counts of any split of the images add up.
LARGEST_WEIGHT = 2**20


class MseObserver(HistogramObserver):
    """Range with the least mean square error of rounding and clipping.

    The error is integrated exactly over each bin, with values uniformly distributed inside it.
    """

    def search(self, counts: Tensor, lowest: Tensor, highest: Tensor) -> Range:
        """Return the best range, searching both ends alternately; see `HistogramObserver`."""
        edges = bin_edges(counts.device)
        seen = counts.nonzero().squeeze(1)
        if not len(seen):
            return lowest, highest
        low_edge, high_edge, counts = edges[seen], edges[seen + 1], counts[seen]
        low_edge = torch.maximum(low_edge, lowest.double()).minimum(high_edge)
        high_edge = torch.minimum(high_edge, highest.double()).maximum(low_edge)
        low, high = lowest.double().clamp(max=0.0), highest.double().clamp(min=0.0)

        def best(lows: Tensor, highs: Tensor) -> tuple[Tensor, Tensor]:
            cost = self._cost(lows, highs, (low_edge, high_edge, counts))
            index = cost.argmin()
            return lows[index], highs[index]

        shares = counts.new_tensor(SHARES)
        if self.spec.symmetric:
            low = -torch.maximum(-low, high)
            for factors in (shares, counts.new_tensor(FINE)):
                low, _ = best(low * factors, -low * factors)
            return torch.maximum(low, lowest.double()), torch.minimum(-low, highest.double())
        low, high = best(low * shares, high * shares)
        extremes = lowest.double().clamp(max=0.0), highest.double().clamp(min=0.0)
        for factors in (shares, counts.new_tensor(FINE), counts.new_tensor(FINE)):
            highs = torch.cat(
                [extremes[1] * factors if factors is shares else high * factors, high[None]]
            )
            highs = highs.clamp(max=extremes[1])
            low, high = best(low.expand_as(highs), highs)
            lows = torch.cat(
                [extremes[0] * factors if factors is shares else low * factors, low[None]]
            )
            lows = lows.clamp(min=extremes[0])
            low, high = best(lows, high.expand_as(lows))
        return low, high

    def _cost(self, lows: Tensor, highs: Tensor, bins: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return the sum of squared errors for each candidate range, ``(candidates,)``."""
        scale, zero_point = scale_and_zero_point(lows, highs, self.spec)
        low = (self.spec.quant_min - zero_point) * scale
        high = (self.spec.quant_max - zero_point) * scale
        if all(map(kernels.takes, bins)):
            ranges = torch.stack([scale, scale**3, low, high, NARROW * scale]).double()
            return kernels.range_errors(*bins, ranges)
        begin, end, counts = bins
        error = mean_square_error(begin, end, scale[:, None], low[:, None], high[:, None])
        return halved_sum(counts * error)


class WeightedMseObserver(MseObserver):
    """Range with the least mean square error, weighted by each channel's effect on the outputs.

    A tensor may have a channel of large values that hardly matter and one of small values that
    matter most. Without weights (`weigh_channels_`) all channels count alike. An end that is closer
    to zero than the share `CHEAP` of the range's width is not clipped: the lower bound of SiLU, for
    example. Many values lie there, and clipping moves their mean, which later layers do not average
    out.
    """

    channel_weights: Tensor

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        empty = torch.zeros(0, dtype=torch.int64)
        self.register_buffer("channel_weights", empty, persistent=False)

    @torch.no_grad()
    def weigh_channels_(self, effects: Tensor) -> None:
        """Set the weights, before anything is counted.

        Args:
            effects: Effect on the outputs of an error in each channel, ``(channels,)``, 0 or more.
        """
        effects = effects.double()  # The smallest divisor below is zero in float32.
        largest = effects.max().clamp(min=1e-300)
        weights = (effects / largest * LARGEST_WEIGHT).round().clamp(min=1)
        self.channel_weights = weights.to(torch.int64).to(self.range_min.device)

    def stop_collecting_(self) -> None:
        """Stop counting and drop counts and weights; the range stays."""
        super().stop_collecting_()
        self.channel_weights = self.channel_weights[:0].clone()

    def _weights_for(self, x: Tensor) -> Tensor | None:
        weights = self.channel_weights
        fits = x.dim() >= 2 and len(weights) > 0 and x.shape[1] == len(weights)
        return weights if fits else None

    def search(self, counts: Tensor, lowest: Tensor, highest: Tensor) -> Range:
        """Return the best range; an end close to zero is not clipped. See `MseObserver`."""
        low, high = super().search(counts, lowest, highest)
        if self.spec.symmetric:
            return low, high
        share = CHEAP * (high.clamp(min=0) - low.clamp(max=0))
        low = torch.where(-lowest < share, lowest.to(low.dtype), low)
        return low, torch.where(highest < share, highest.to(high.dtype), high)


def halved_sum(x: Tensor) -> Tensor:
    """Return the sum of each row, in an order that is the same on every device.

    The upper half of a row is added to the lower half until one value is left.

    Args:
        x: ``(rows, columns)``.

    Returns:
        ``(rows,)``.
    """
    x = F.pad(x, (0, (1 << (x.shape[1] - 1).bit_length()) - x.shape[1]))
    while x.shape[1] > 1:
        lower, upper = x.chunk(2, dim=1)
        x = lower + upper
    return x[:, 0]


def mean_square_error(
    begin: Tensor, end: Tensor, scale: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Return the mean of ``(x - quantized(x))^2`` for x uniform between ``begin`` and ``end``.

    Args:
        begin: Left edges, float64; all arguments broadcast.
        end: Right edges, not smaller.
        scale: Distance of representable values, one of which is 0.
        low: The smallest representable value.
        high: The largest.
    """

    def integral(x: Tensor) -> Tensor:
        """Integral from 0 to x: of a saw-tooth inside the range and a parabola outside."""
        inside = torch.minimum(torch.maximum(x, low), high) / scale
        whole = torch.round(inside)
        teeth = scale**3 * (whole / 12 + (inside - whole) ** 3 / 3)
        return teeth + ((x - high).clamp(min=0.0) ** 3 + (x - low).clamp(max=0.0) ** 3) / 3

    width = end - begin
    mean = (integral(end) - integral(begin)) / width.clamp(min=1e-300)
    clipped = torch.minimum(torch.maximum(begin, low), high)
    point = (begin - torch.round(clipped / scale) * scale) ** 2
    # A narrow bin counts as one value: the difference of two integrals would be cancellation error.
    return torch.where(width < NARROW * scale, point, mean.clamp(min=0.0))


class EntropyObserver(HistogramObserver):
    """Range whose quantized distribution loses the least information (Kullback-Leibler).

    After Migacz, 8-bit Inference with TensorRT (GTC 2017), with one threshold for both signs. The
    values are counted again in `ENTROPY_BINS` equal bins. With at least that many integer levels
    nothing is lost, and the range is from minimum to maximum.
    """

    def search(self, counts: Tensor, lowest: Tensor, highest: Tensor) -> Range:
        """Return the range of least divergence; see `HistogramObserver`."""
        low, high = lowest.double().clamp(max=0.0), highest.double().clamp(min=0.0)
        if self.spec.num_levels >= ENTROPY_BINS or not bool(high > low):
            return lowest, highest
        if self.spec.symmetric:
            high = torch.maximum(high, -low)
            low = -high
        even = rebin(counts, low, high, ENTROPY_BINS)
        zero = int(torch.round(-low / (high - low) * ENTROPY_BINS))
        reach = torch.arange(16, max(zero, ENTROPY_BINS - zero) + 16, 16, device=counts.device)
        begin, end = (zero - reach).clamp(min=0), (zero + reach).clamp(max=ENTROPY_BINS)
        wide = end - begin >= self.spec.num_levels
        begin, end = begin[wide], end[wide]
        best = divergence(even, begin, end, self.spec.num_levels).argmin()
        step = (high - low) / ENTROPY_BINS
        found = low + step * begin[best], low + step * end[best]
        return torch.maximum(found[0], lowest.double()), torch.minimum(found[1], highest.double())


def divergence(even: Tensor, begin: Tensor, end: Tensor, num_levels: int) -> Tensor:
    """Return the Kullback-Leibler divergence of each candidate range from the distribution.

    What is outside a range counts in its outermost bins. Each level's count is spread evenly over
    its bins that are not empty. All sums are differences of cumulative sums.

    Args:
        even: Counts in equal bins, float64 ``(bins,)``.
        begin: First bin of each range, int64 ``(ranges,)``.
        end: The bin after its last one; a range has at least as many bins as levels.
        num_levels: Number of levels of the integer format.

    Returns:
        ``(ranges,)``.
    """
    occupied = even > 0
    total, inside = even.sum(), torch.where(occupied, even, 1.0)
    counts, bins, entropies = (_sums_before(x) for x in (even, occupied, even * inside.log()))
    levels = torch.arange(num_levels + 1, device=even.device)
    # A range's bin number n has level n * levels // bins.
    first = begin[:, None] - (-(end - begin)[:, None] * levels) // num_levels
    in_level = counts[first].diff()
    spread = in_level / bins[first].diff().clamp(min=1)
    log_q = (spread / (counts[end] - counts[begin]).clamp(min=1e-300)[:, None]).clamp(min=1e-30)
    log_q = log_q.log()
    found = entropies[end] - entropies[begin] - (counts[end] - counts[begin]) * total.log()
    found = found - (in_level * log_q).sum(1)
    for place, outside, q in (
        (begin, counts[begin], log_q[:, 0]),
        (end - 1, counts[-1] - counts[end], log_q[:, -1]),
    ):
        own, whole = even[place], even[place] + outside
        q = torch.where(occupied[place], q, math.log(1e-30))
        found = found + _times_log(whole, total, q) - _times_log(own, total, q)
    return found / total


def _sums_before(x: Tensor) -> Tensor:
    """Return the cumulative sums, beginning with 0."""
    return F.pad(x.cumsum(0), (1, 0))


def _times_log(count: Tensor, total: Tensor, log_q: Tensor) -> Tensor:
    """Return a bin's part of the divergence, times the total."""
    return count * ((count / total).clamp(min=1e-30).log() - log_q)


def rebin(counts: Tensor, low: Tensor, high: Tensor, num_bins: int) -> Tensor:
    """Rebin the counts into equal bins from ``low`` to ``high``, float64 ``(num_bins,)``."""
    edges = bin_edges(counts.device)
    cumulative = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    share = torch.linspace(0, 1, num_bins + 1, dtype=counts.dtype, device=counts.device)
    wanted = low + (high - low) * share
    index = (torch.searchsorted(edges, wanted, right=True) - 1).clamp(0, len(counts) - 1)
    fraction = (wanted - edges[index]) / (edges[index + 1] - edges[index])
    until = cumulative[index] + fraction.clamp(0, 1) * counts[index]
    until[0], until[-1] = 0, cumulative[-1]
    return until.diff()
