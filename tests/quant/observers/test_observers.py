"""Observers: merging any split of the batches equals observing them all."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dq.quant.numerics.affine import fake_quantize, scale_and_zero_point
from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.histogram import NUM_BINS, PercentileObserver, bin_edges, bin_index
from dq.quant.observers.min_max import (
    MinMaxObserver,
    MovingAverageObserver,
    buffers,
    update_ranges_,
)
from dq.quant.observers.range_search import EntropyObserver, MseObserver, WeightedMseObserver

MAKERS: dict[str, Any] = {
    "min_max": MinMaxObserver,
    "per channel": partial(MinMaxObserver, channel_axis=1, num_channels=3),
    "moving_average": MovingAverageObserver,
    "percentile": partial(PercentileObserver, percentile=99.0),
    "mse": MseObserver,
    "weighted_mse": WeightedMseObserver,
    "mse symmetric": partial(MseObserver, spec=QuantSpec(bits=4, signed=True, symmetric=True)),
    "entropy": EntropyObserver,
}
HISTOGRAMS = [name for name in MAKERS if name in ("percentile", "mse", "weighted_mse", "entropy")]


def merge_into_(first: MinMaxObserver, second: MinMaxObserver) -> None:
    how = {"min": torch.minimum, "max": torch.maximum, "sum": torch.add}
    for name, kind in first.merge.items():
        getattr(first, name).copy_(how[kind](getattr(first, name), getattr(second, name)))


def batches(seed: int, sizes: list[int], spoiled: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number, size in enumerate(sizes):
        batch = torch.randn(size, 3, 2, generator=generator) * 10.0 ** (number - 2)
        if spoiled and size:
            batch[0, 0, 0] = [torch.nan, torch.inf, -torch.inf][number % 3]
        found.append(batch)
    return found


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 1000),
    owners=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=6),
    spoiled=st.booleans(),
)
def test_any_split_of_the_batches_merges_to_observing_them_all(
    name: str, seed: int, owners: list[tuple[int, int]], spoiled: bool
) -> None:
    data = batches(seed, [size for _, size in owners], spoiled)
    alone = MAKERS[name]()
    ranks = [MAKERS[name]() for _ in range(4)]
    for (rank, _), batch in zip(owners, data, strict=True):
        alone.observe(batch)
        ranks[rank].observe(batch)
    for other in ranks[1:]:
        merge_into_(ranks[0], other)
    alone.update_()
    ranks[0].update_()
    assert torch.equal(alone.range_min, ranks[0].range_min)
    assert torch.equal(alone.range_max, ranks[0].range_max)


@pytest.mark.parametrize("name", MAKERS)
def test_nan_and_infinities_do_not_spoil_a_range(name: str) -> None:
    observer = MAKERS[name]()
    good = torch.linspace(-1, 3, 600).reshape(100, 3, 2)
    observer.observe(good)
    observer.update_()
    for value in (torch.nan, torch.inf, -torch.inf):
        bad = good.clone()
        bad[0] = value
        observer.observe(bad)
        observer.update_()
        observer.observe(torch.full((2, 3, 2), value))
        observer.update_()
    assert torch.isfinite(observer.range_min).all()
    assert torch.isfinite(observer.range_max).all()
    assert observer.range_max.max() <= 3.0
    assert observer.range_min.min() >= -1.0
    assert observer.range_max.max() > 1.0


def test_a_range_per_tensor_or_per_channel() -> None:
    assert MinMaxObserver().range_min.shape == ()
    assert MinMaxObserver(channel_axis=0).range_min.shape == (1,)
    assert MinMaxObserver(channel_axis=0, num_channels=3).range_min.shape == (3,)


@pytest.mark.parametrize("percentile", [50.0, 0.0, -1.0, 100.5, 101.0, float("nan")])
def test_percentiles_are_above_the_middle_up_to_all(percentile: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        PercentileObserver(percentile=percentile)
    for allowed in (50.1, 99.99, 100.0):
        PercentileObserver(percentile=allowed)


@pytest.mark.parametrize("momentum", [0.0, -0.1, 1.1, 2.0, float("nan")])
def test_a_momentum_is_a_share(momentum: float) -> None:
    with pytest.raises(ValueError, match="momentum"):
        MovingAverageObserver(momentum=momentum)
    MovingAverageObserver(momentum=1.0)


@pytest.mark.parametrize("name", MAKERS)
def test_without_data_the_range_is_neutral(name: str) -> None:
    observer = MAKERS[name]()
    observer.observe(torch.zeros(0, 3, 2))
    observer.update_()
    assert (observer.range_min == torch.inf).all()
    assert (observer.range_max == -torch.inf).all()


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("value", [0.0, 2.5, -1e-30, 1e30])
def test_a_constant_tensor_gives_a_range_that_contains_it(name: str, value: float) -> None:
    observer = MAKERS[name]()
    observer.observe(torch.full((4, 3, 2), value))
    observer.update_()
    assert (observer.range_min <= observer.range_max).all()
    covered = torch.tensor(value)
    low, high = observer.range_min.min().clamp(max=0), observer.range_max.max().clamp(min=0)
    assert low * 1.1 <= covered <= high * 1.1 or abs(value) < 1e-20


def test_bins_are_ascending_and_every_value_is_inside_its_bin() -> None:
    edges = bin_edges(torch.zeros(1).device)
    assert edges.shape == (NUM_BINS + 1,)
    assert float(edges[-1]) == -float(edges[0]) == 2.0**24
    assert float(edges[edges > 0].min()) < 2.0**-23
    assert (edges.diff() > 0).all()
    x = torch.cat([torch.randn(1000) * 10.0**k for k in range(-6, 7)])
    x = torch.cat([x, torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0**-24])])
    index = bin_index(x)
    assert ((edges[index] <= x) & (x <= edges[index + 1])).all()
    assert bin_index(torch.tensor([torch.nan, torch.inf])).tolist() == [NUM_BINS, NUM_BINS]


def test_percentile_is_the_quantile_of_the_data_within_a_bin() -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(1)).exp()
    observer = PercentileObserver(percentile=99.0)
    observer.observe(x[:1000])
    observer.observe(x[1000:])
    observer.update_()
    want = torch.quantile(x[:100_000], torch.tensor([0.005, 0.995]))
    torch.testing.assert_close(observer.range_min, want[0], rtol=0.03, atol=0)
    torch.testing.assert_close(observer.range_max, want[1], rtol=0.03, atol=0)


def error(x: Tensor, low: Tensor, high: Tensor, spec: QuantSpec) -> float:
    scale, zero_point = scale_and_zero_point(low, high, spec)
    return float((fake_quantize(x, scale, zero_point, spec) - x).square().mean())


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_mse_range_is_as_good_as_the_best_of_a_brute_search(
    bits: int, symmetric: bool, power_of_two: bool
) -> None:
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(20_000, generator=generator)
    x = torch.cat([torch.nn.functional.silu(3 * x), torch.tensor([60.0])])
    spec = QuantSpec(bits=bits, signed=symmetric, symmetric=symmetric, power_of_two=power_of_two)
    observer = MseObserver(spec=spec)
    observer.observe(x)
    observer.update_()
    found = error(x, observer.range_min, observer.range_max, spec)
    candidates = [
        error(x, torch.tensor(low), torch.tensor(high), spec)
        for high in torch.logspace(0, 1.8, 40).tolist()
        for low in ([-high] if symmetric else [-0.28, -0.2, -0.1])
    ]
    assert found <= 1.03 * min(candidates)
    assert found < 0.9 * error(x, x.min(), x.max(), spec) or bits == 8


def test_entropy_clips_a_lonely_outlier_and_keeps_a_flat_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(50_000, generator=generator)
    observer = EntropyObserver()
    observer.observe(torch.cat([normal, torch.tensor([100.0])]))
    observer.update_()
    assert 2.5 < observer.range_max < 50
    flat = EntropyObserver()
    flat.observe(torch.rand(50_000, generator=generator))
    flat.update_()
    assert flat.range_max > 0.9


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_after_collecting_a_moving_average_continues_from_the_range(name: str) -> None:
    observer = MAKERS[name](momentum=0.5)
    observer.observe(torch.linspace(0, 4, 1000))
    observer.update_()
    observer.stop_collecting_()
    before = observer.range_max.clone()
    assert set(observer.state_dict()) == {"range_min", "range_max"}
    observer.observe(torch.tensor([0.0, 8.0]))
    observer.update_()
    torch.testing.assert_close(observer.range_max, (before + 8) / 2)


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_beginning_a_calibration_starts_counting_or_continues(name: str) -> None:
    x = torch.linspace(0, 4, 1000)
    observer = MAKERS[name](collects=False)
    observer.begin_calibration_()
    assert observer.collects
    observer.observe(x)
    observer.update_()
    assert int(observer.counts.sum()) == 1000
    observer.begin_calibration_()  # As the next batch, or the next phase, does.
    observer.observe(2 * x)
    observer.update_()
    assert int(observer.counts.sum()) == 2000
    assert float(observer.highest) == 8.0
    observer.end_calibration_()
    assert not observer.collects
    assert len(observer.counts) == 0
    observer.begin_calibration_()
    observer.observe(x)
    observer.update_()
    assert int(observer.counts.sum()) == 1000


@pytest.mark.parametrize("name", MAKERS)
def test_observing_compiles_as_one_graph_and_is_right_for_half_precision(name: str) -> None:
    observer = MAKERS[name]()
    compiled = torch.compile(observer.observe, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 3, 2)
    compiled(x)
    observer.update_()
    plain = MAKERS[name]()
    plain.observe(x)
    plain.update_()
    torch.testing.assert_close(observer.range_max, plain.range_max)
    half = MAKERS[name]()
    half.observe(x.bfloat16())
    half.update_()
    assert half.range_max.dtype == torch.float32
    torch.testing.assert_close(half.range_max, plain.range_max, rtol=0.02, atol=0.02)


def test_many_observers_together_give_the_ranges_of_each_alone() -> None:
    alone = [make() for make in MAKERS.values() for _ in range(2)]
    together = copy.deepcopy(alone)
    for step in range(3):
        for number, pair in enumerate(zip(alone, together, strict=True)):
            if (number + step) % 3 == 0:
                continue  # Recorded nothing in this step.
            x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(10 * number + step))
            for observer in pair:
                observer.observe(x)
        for observer in alone:
            observer.update_()
        update_ranges_([*together, together[1]])  # One of them is shared by two quantizers.
        for one, two in zip(alone, together, strict=True):
            for name, tensor in one.named_buffers():
                assert torch.equal(tensor, two.get_buffer(name)), name


def test_a_tensor_is_found_if_it_is_not_a_buffer() -> None:
    plain, learned = MinMaxObserver(), MinMaxObserver()
    del learned.range_min
    learned.range_min = torch.nn.Parameter(torch.tensor(3.0))
    found = buffers([plain, learned], "range_min")
    assert found[0] is plain.range_min
    assert found[1] is learned.range_min
    plain.range_min = torch.tensor(7.0)  # Replaced: nothing remembers the old one.
    assert buffers([plain], "range_min")[0] is plain.range_min


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_a_histogram_that_does_not_collect_is_recorded_by_the_fused_kernels(name: str) -> None:
    observer = MAKERS[name]()
    assert not observer.records_extremes
    observer.observe(torch.linspace(0, 4, 1000))
    observer.update_()
    observer.end_calibration_()
    assert observer.records_extremes
