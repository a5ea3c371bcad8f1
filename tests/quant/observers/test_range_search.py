"""The searched ranges where the best one is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.histogram import NUM_BINS, bin_edges
from dq.quant.observers.range_search import (
    ENTROPY_BINS,
    EntropyObserver,
    MseObserver,
    WeightedMseObserver,
    divergence,
    halved_sum,
    mean_square_error,
    rebin,
)


def of_two_scales(bits: int) -> EntropyObserver:
    """Return an observer of many values below 1 and a few up to 8."""
    observer = EntropyObserver(spec=QuantSpec(bits=bits))
    observer.observe(torch.linspace(0, 1, 50_000))
    observer.observe(torch.tensor([8.0]))
    observer.update_()
    return observer


def test_a_mirrored_tensor_has_the_mirrored_entropy_range() -> None:
    x = torch.randn(5000, generator=torch.Generator().manual_seed(2))
    x = torch.where(x > 0, 5 * x * x, x)
    ends = []
    for sign in (1.0, -1.0):
        observer = EntropyObserver(spec=QuantSpec(bits=4, signed=True, symmetric=True))
        observer.observe(sign * x)
        observer.update_()
        ends.append((float(observer.range_min), float(observer.range_max)))
    assert ends[1] == pytest.approx((-ends[0][1], -ends[0][0]), rel=1e-2)
    assert ends[0][1] > 2 * -ends[0][0]


@pytest.mark.parametrize("bits", [11, 12, 16])
def test_entropy_with_enough_levels_keeps_all_values(bits: int) -> None:
    assert QuantSpec(bits=bits).num_levels >= ENTROPY_BINS
    observer = of_two_scales(bits)
    assert float(observer.range_min) == 0.0
    assert float(observer.range_max) == 8.0


def test_entropy_takes_a_range_that_has_a_level_for_each_bin() -> None:
    # An eighth of the bins is as many as there are levels, and all values but one are in them.
    assert QuantSpec(bits=8).num_levels * 8 == ENTROPY_BINS
    assert float(of_two_scales(8).range_max) == 1.0


def test_counts_are_spread_over_equal_bins_in_proportion() -> None:
    edges = bin_edges(torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    # Bins of any size, the last ones too, where the largest values are.
    counts = torch.randint(0, 9, (NUM_BINS,), generator=generator).double()
    cumulative = np.concatenate([[0.0], counts.cumsum(0).numpy()])
    top = float(edges[-1])
    for low, high in ((-top, top), (-3.0, 5.0), (0.0, float(edges[-2])), (0.9 * top, top)):
        found = rebin(counts, torch.tensor(low).double(), torch.tensor(high).double(), 64)
        wanted = np.interp(np.linspace(low, high, 65), edges.numpy(), cumulative)
        wanted[0], wanted[-1] = 0.0, cumulative[-1]  # What is outside is in the first and last.
        np.testing.assert_allclose(found.numpy(), np.diff(wanted), rtol=1e-3, atol=1e-3)


def direct_divergence(even: Tensor, begin: int, end: int, num_levels: int) -> float:
    """Return the divergence of one range, bin by bin."""
    reference = even[begin:end].clone()
    reference[0] += even[:begin].sum()
    reference[-1] += even[end:].sum()
    inside, rounded = even[begin:end], torch.zeros(end - begin).double()
    level = torch.arange(end - begin) * num_levels // (end - begin)
    for number in range(num_levels):
        members = (level == number) & (inside > 0)
        if members.any():
            rounded[members] = inside[members].mean()
    p, q = reference / reference.sum(), rounded / rounded.sum().clamp(min=1e-300)
    return float((p * (p.clamp(min=1e-30).log() - q.clamp(min=1e-30).log())).sum())


@pytest.mark.parametrize("num_levels", [4, 15, 256])
@pytest.mark.parametrize("share_empty", [0.0, 0.5, 0.99])
def test_divergences_of_all_ranges_at_once_are_those_of_each(
    num_levels: int, share_empty: float
) -> None:
    generator = torch.Generator().manual_seed(num_levels)
    even = torch.rand(2048, generator=generator, dtype=torch.float64).exp2() * 1e6
    even[torch.rand(2048, generator=generator) < share_empty] = 0.0
    even[700] = 5e8
    begin, end = torch.tensor([0, 0, 600, 699, 690]), torch.tensor([2048, 1500, 1300, 955, 950])
    found = divergence(even, begin, end, num_levels)
    for number, (first, last) in enumerate(zip(begin.tolist(), end.tolist(), strict=True)):
        wanted = direct_divergence(even, first, last, num_levels)
        assert float(found[number]) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_a_sum_by_halves_is_the_sum_of_each_row() -> None:
    for columns in (1, 2, 3, 64, 65):
        x = torch.rand(4, columns, dtype=torch.float64)
        torch.testing.assert_close(halved_sum(x), x.sum(1))


@pytest.mark.parametrize(("low", "high"), [(-8.0, 7.0), (0.0, 15.0), (-3.0, 0.0)])
def test_the_error_of_a_bin_is_that_of_many_values_in_it(low: float, high: float) -> None:
    scale = torch.tensor(0.37).double()
    ends = scale * low, scale * high
    # Inside, across an end, beyond both ends, and a bin that contains the whole range.
    begin = torch.tensor([0.1, 0.2, 5.0, -9.0, -2.0, -0.6, -4.0, 0.15]).double()
    end = torch.tensor([0.3, 3.3, 6.5, -8.0, 5.0, -0.2, -3.0, 0.1501]).double()
    found = mean_square_error(begin, end, scale, *ends)
    share = (torch.arange(200_000).double() + 0.5) / 200_000
    for number, error in enumerate(found.tolist()):
        x = begin[number] + (end[number] - begin[number]) * share
        rounded = (x / scale).round().clamp(low, high) * scale
        wanted = float((x - rounded).square().mean())
        assert error == pytest.approx(wanted, rel=2e-3, abs=1e-9)


def test_a_narrow_bin_counts_as_the_value_at_its_beginning() -> None:
    scale = torch.tensor(1.0).double()
    begin = torch.tensor([0.3, 0.3, 9.0], dtype=torch.float64)
    end = begin + torch.tensor([0.999e-3, 1.1e-3, 0.0], dtype=torch.float64)
    found = mean_square_error(begin, end, scale, -2 * scale, 2 * scale)
    assert float(found[0]) == pytest.approx(0.09, rel=1e-12)
    assert float(found[1]) == pytest.approx(0.30055**2, rel=1e-4)
    assert float(found[2]) == pytest.approx(49.0, rel=1e-12)


def test_of_each_channel_that_matters_more_more_is_counted() -> None:
    observer = WeightedMseObserver()
    observer.weigh_channels_(torch.tensor([0.0, 1e-9, 0.25, 1.0, 4.0]))
    # In shares of the largest, and at least 1.
    assert observer.channel_weights.tolist() == [1, 1, 65536, 262144, 1048576]
    assert observer.channel_weights.dtype == torch.int64
    for shape, fits in (((2, 5), True), ((2, 5, 1), True), ((5,), False), ((5, 2), False)):
        assert (observer._weights_for(torch.zeros(shape)) is not None) == fits
    observer.weigh_channels_(torch.zeros(2))
    assert observer.channel_weights.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (-0.05, 1.0, (True, False)),  # Less than a tenth of the range is left whole.
        (-1.0, 0.05, (False, True)),
        (-1.0, 1.0, (False, False)),
        (-0.2, 1.0, (False, False)),
    ],
)
def test_an_end_that_reaches_not_far_is_not_clipped(
    low: float, high: float, wanted: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    clipped = torch.tensor(low / 2).double(), torch.tensor(high / 2).double()
    monkeypatch.setattr(MseObserver, "search", lambda *_: clipped)
    ends = torch.tensor(low), torch.tensor(high)
    for symmetric in (False, True):
        spec = QuantSpec(bits=4, signed=symmetric, symmetric=symmetric)
        found = WeightedMseObserver(spec=spec).search(torch.zeros(NUM_BINS), *ends)
        for own, whole, kept, cut in zip(found, ends, wanted, clipped, strict=True):
            assert float(own) == pytest.approx(float(whole if kept and not symmetric else cut))


GOLDEN = {
    # Bits, and whether signed and symmetric: the range of least error of the same 4000 values.
    (3, False): (-1.947881, 5.725692),
    (4, False): (-2.142694, 8.342726),
    (3, True): (-3.470729, 4.171363),  # One end is the smallest value, the other one is clipped.
    (4, True): (-3.470729, 6.232119),
}


@pytest.mark.parametrize(("bits", "symmetric"), GOLDEN)
def test_the_searched_range_of_known_values_stays(bits: int, symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(4000, generator=generator)
    x = torch.where(x > 0, x * x, x)
    observer = MseObserver(spec=QuantSpec(bits=bits, signed=symmetric, symmetric=symmetric))
    observer.observe(x)
    observer.update_()
    found = float(observer.range_min), float(observer.range_max)
    assert found == pytest.approx(GOLDEN[bits, symmetric], rel=1e-4)


def test_the_edges_of_the_bins_are_computed_once() -> None:
    device = torch.device("cpu")
    assert bin_edges(device) is bin_edges(device)
