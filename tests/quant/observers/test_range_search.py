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
    divergence,
    halved_sum,
    rebin,
)


def of_two_scales(bits: int) -> EntropyObserver:
    """Return an observer of many values below 1 and a few up to 8."""
    observer = EntropyObserver(spec=QuantSpec(bits=bits))
    observer.observe(torch.linspace(0, 1, 50_000))
    observer.observe(torch.tensor([8.0]))
    observer.update_()
    return observer


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
