"""The searched ranges where the best one is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.histogram import NUM_BINS, bin_edges
from dq.quant.observers.range_search import ENTROPY_BINS, EntropyObserver, rebin


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
