"""The kernels of calibration's histograms give the results of torch's operators, bit for bit."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dq.quant.kernels import histogram as kernels
from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.histogram import (
    DROPPED_BITS,
    FIRST_MAGNITUDE,
    NUM_BINS,
    NUM_MAGNITUDES,
    HistogramObserver,
    bin_index,
)
from dq.quant.observers.range_search import WeightedMseObserver
from dq.quant.recipes.recipe import OBSERVERS
from tests.quant.specs import specs

INF, NAN = float("inf"), float("nan")
BINS = FIRST_MAGNITUDE, DROPPED_BITS, NUM_MAGNITUDES
SIZES = (0, 1, 7, 16, 40, 4096, 8191, 8192, 20_000, 300_001)
KINDS = ("normal", "relu", "wide", "constant", "odd", "bits")


@pytest.fixture(autouse=True)
def _there() -> None:
    assert kernels.library() is not None, "the machine that runs the tests has a compiler"


def values(kind: str, seed: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "bits":  # Every kind of float32: NaNs, subnormal numbers, infinities.
        whole = torch.randint(-(2**31), 2**31, (size,), generator=generator)
        return whole.to(torch.int32).view(torch.float32)
    x = torch.randn(size, generator=generator)
    if kind == "relu":
        x = x.relu()
    elif kind == "wide":
        x = x * 10.0 ** torch.randint(-12, 12, (size,), generator=generator)
    elif kind == "constant":
        x = torch.full_like(x, [0.0, -0.0, 2.5, -1e-42, 1e30][seed % 5])
    elif kind == "odd" and size > 8:
        x[:8] = torch.tensor([INF, -INF, NAN, 0.0, -0.0, 2.0**24, -1e30, -1e-42])
    return x


def watched(observer: HistogramObserver, batches: list[Tensor], threads: int) -> HistogramObserver:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for x in batches:
            observer.observe(x)
        observer.update_()
    finally:
        torch.set_num_threads(before)
    return observer


def without_kernels(
    observer: HistogramObserver, batches: list[Tensor], patch: pytest.MonkeyPatch
) -> HistogramObserver:
    with patch.context() as switched:
        switched.setattr(kernels, "takes", lambda x: False)
        return watched(observer, batches, 1)


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1000),
    size=st.sampled_from(SIZES),
    threads=st.sampled_from([1, 2]),
)
def test_values_are_counted_like_torch_counts_them(
    kind: str, seed: int, size: int, threads: int
) -> None:
    x = values(kind, seed, size)
    counts = torch.randint(0, 9, (NUM_BINS + 1,), generator=torch.Generator().manual_seed(seed))
    wanted = counts + torch.bincount(bin_index(x), minlength=NUM_BINS + 1)
    lowest, highest = torch.tensor(INF), torch.tensor(-INF)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        kernels.count_(x, BINS, counts, (lowest, highest))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(counts, wanted)
    finite = x[x.isfinite()]
    assert float(lowest) == (float(finite.min()) if len(finite) else INF)
    assert float(highest) == (float(finite.max()) if len(finite) else -INF)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1000),
    shape=st.sampled_from([(0, 3, 2), (1, 1), (2, 3), (4, 3, 5), (2, 5, 40, 50), (3, 2, 300, 301)]),
    threads=st.sampled_from([1, 2, 3]),
    channels_last=st.booleans(),
)
def test_weighted_values_are_counted_like_torch_counts_them(
    kind: str, seed: int, shape: tuple[int, ...], threads: int, channels_last: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = values(kind, seed, math.prod(shape)).reshape(shape)
    if channels_last and x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    weights = torch.randint(1, 2**20, (shape[1],), generator=generator)
    plain, fast = (WeightedMseObserver() for _ in range(2))
    for observer in (plain, fast):
        observer.channel_weights = weights
    watched(fast, [x, x], threads)
    with pytest.MonkeyPatch.context() as patch:
        without_kernels(plain, [x, x], patch)
    assert torch.equal(fast.counts, plain.counts)
    assert int(fast.counts.sum()) == 2 * int(weights.sum()) * (x.numel() // shape[1])
    assert torch.equal(fast.range_min, plain.range_min)


def histogram_observers() -> list[str]:
    return [name for name, kind in OBSERVERS.items() if issubclass(kind, HistogramObserver)]


@pytest.mark.parametrize("name", histogram_observers())
@settings(max_examples=25, deadline=None)
@given(
    spec=specs(),
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
    size=st.sampled_from(SIZES),
    threads=st.sampled_from([1, 2]),
)
def test_every_histogram_gives_the_same_range_without_the_kernels(
    name: str, spec: QuantSpec, kinds: list[str], seed: int, size: int, threads: int
) -> None:
    batches = [values(kind, seed + k, size) for k, kind in enumerate(kinds)]
    plain = OBSERVERS[name](spec=replace(spec, channel_axis=None))
    assert isinstance(plain, HistogramObserver)
    fast = watched(copy.deepcopy(plain), batches, threads)
    with pytest.MonkeyPatch.context() as patch:
        without_kernels(plain, batches, patch)
    for buffer, tensor in plain.named_buffers():
        assert torch.equal(fast.get_buffer(buffer), tensor), buffer


@pytest.mark.parametrize("layout", ["channels_last", "strided", "half", "double"])
def test_every_layout_and_dtype_is_counted(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 40, 50, generator=torch.Generator().manual_seed(1))
    x = {
        "channels_last": x.to(memory_format=torch.channels_last),
        "strided": x[:, 1:, ::2],
        "half": x.bfloat16(),
        "double": x.double(),
    }[layout]
    plain, fast = (OBSERVERS["mse"]() for _ in range(2))
    assert isinstance(plain, HistogramObserver)
    assert isinstance(fast, HistogramObserver)
    watched(fast, [x], 1)
    without_kernels(plain, [x], monkeypatch)
    assert int(fast.counts.sum()) == x.numel()
    assert torch.equal(fast.counts, plain.counts)
    assert torch.equal(fast.range_max, plain.range_max)


def test_other_devices_and_dtypes_are_left_to_torch() -> None:
    assert kernels.takes(torch.zeros(3))
    assert not kernels.takes(torch.zeros(3, device="meta"))
    assert not kernels.takes(torch.zeros(3, dtype=torch.float16))
    assert not kernels.takes(torch.zeros(3, 4)[:, ::2])
