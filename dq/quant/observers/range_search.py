"""Observers that search the range with the least error: mean square error or entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from dq.quant.numerics.affine import scale_and_zero_point
from dq.quant.observers.histogram import HistogramObserver, bin_edges
from dq.quant.observers.min_max import Range

# Candidates for one end of the range, as shares of the extreme: from 100 % down to 1 %.
SHARES = tuple(0.5 ** (k / 6) for k in range(40))
FINE = tuple(1 + k / 100 for k in range(-10, 11))
ENTROPY_BINS = 2048


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
        begin, end, counts = bins
        error = mean_square_error(begin, end, scale[:, None], low[:, None], high[:, None])
        return (counts * error).sum(1)


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
    return torch.where(width < 1e-3 * scale, point, mean.clamp(min=0.0))


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
        best, chosen = torch.inf, (0, ENTROPY_BINS)
        for threshold in range(16, max(zero, ENTROPY_BINS - zero) + 16, 16):
            ends = max(zero - threshold, 0), min(zero + threshold, ENTROPY_BINS)
            if ends[1] - ends[0] < self.spec.num_levels:
                continue
            divergence = float(self._divergence(even, *ends))
            if divergence < best:
                best, chosen = divergence, ends
        step = (high - low) / ENTROPY_BINS
        found = low + step * chosen[0], low + step * chosen[1]
        return torch.maximum(found[0], lowest.double()), torch.minimum(found[1], highest.double())

    def _divergence(self, even: Tensor, begin: int, end: int) -> Tensor:
        inside = even[begin:end]
        reference = inside.clone()
        reference[0] += even[:begin].sum()
        reference[-1] += even[end:].sum()
        level = torch.arange(len(inside), device=even.device) * self.spec.num_levels // len(inside)
        occupied = (inside > 0).to(even.dtype)
        sums = even.new_zeros(self.spec.num_levels).index_add_(0, level, inside)
        sizes = even.new_zeros(self.spec.num_levels).index_add_(0, level, occupied)
        rounded = occupied * (sums / sizes.clamp(min=1))[level]
        p, q = reference / reference.sum(), rounded / rounded.sum().clamp(min=1e-300)
        terms = p * (p.clamp(min=1e-30).log() - q.clamp(min=1e-30).log())
        return terms.sum()


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
