"""Compare the GPU kernels, in Triton's interpreter on a CPU, with the CPU kernels.

Run by `test_kernels.py` in a process of its own, because Triton chooses its interpreter at import.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dq.quant.kernels import operators as native_ops
from dq.quant.kernels.gpu import ops
from dq.quant.kernels.gpu.check import kernels_work
from dq.quant.kernels.together import row_table, views_of

CLIPS = [(-torch.inf, torch.inf), (0.0, torch.inf), (0.0, 6.0), (-1.0, 1.0)]
GRIDS = [(0.02, 0, 0, 255), (0.031, 117, 0, 255), (0.5, 0, -8, 7), (0.001, 0, -32768, 32767)]


def _values(number: int, seed: int = 0) -> Tensor:
    """Values of many magnitudes, including ties between two integers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, generator=generator) * 3
    x[::7] = (torch.randint(-300, 300, (len(x[::7]),), generator=generator) + 0.5) * 0.02
    x[::11] = 0.0
    return x


def _record() -> tuple[Tensor, Tensor]:
    return torch.full((), torch.inf), torch.full((), -torch.inf)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("grid", [None, *GRIDS])
def test_activations(clip: tuple[float, float], grid: tuple[float, int, int, int] | None) -> None:
    x = _values(5001)
    scale = zero_point = None
    integers = (0, 255)
    if grid is not None:
        scale, zero_point = torch.tensor(grid[0]), torch.tensor(grid[1], dtype=torch.int32)
        integers = grid[2:]
    found = []
    for activate in (native_ops.activate, ops.activate):
        y, mask, record = torch.empty_like(x), torch.empty_like(x, dtype=torch.uint8), _record()
        activate(x, y, mask, scale, zero_point, (*integers, *clip), record)
        found.append((y, mask, *record))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_odd_values(bad: float) -> None:
    x = _values(5001)
    x[3000] = bad
    x[17] = 3e38
    scale, zero_point = torch.tensor(0.05), torch.tensor(3, dtype=torch.int32)
    found = []
    for activate in (native_ops.activate, ops.activate):
        y, mask, record = torch.empty_like(x), torch.empty_like(x, dtype=torch.uint8), _record()
        record[0].fill_(-1.0)
        activate(x, y, mask, scale, zero_point, (0, 255, -torch.inf, torch.inf), record)
        found.append((y, mask, *record))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert found[0][2] == -1.0, "a tensor with such a value does not change the record"


def test_in_place_without_mask_and_record_only() -> None:
    x = _values(300)
    expected, found = x.clone(), x.clone()
    scale, zero_point = torch.tensor(0.05), torch.tensor(3, dtype=torch.int32)
    rest = (scale, zero_point, (0, 255, 0.0, 6.0), None)
    native_ops.activate(expected, expected, None, *rest)
    ops.activate(found, found, None, *rest)
    assert torch.equal(found, expected)
    record = _record()
    ops.activate(x, None, None, None, None, (0, 255, -torch.inf, torch.inf), record)
    assert [r.item() for r in record] == [x.min().item(), x.max().item()]
    empty = x[:0]
    ops.activate(empty, empty.clone(), None, *rest)
    assert ops.masked_gradient(empty, empty.to(torch.uint8)).shape == (0,)


def test_masked_gradients() -> None:
    gradient = _values(4099)
    gradient[5] = torch.nan
    mask = (_values(4099, seed=1) > 0).to(torch.uint8)
    mask[5] = 0
    expected = native_ops.masked_gradient(gradient, mask)
    assert torch.equal(ops.masked_gradient(gradient, mask), expected)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("has_offset", [False, True])
def test_gradients_of_learned_scales(
    clip: tuple[float, float],
    grid: tuple[float, int, int, int],
    has_offset: bool,
) -> None:
    x, gradient = _values(5001), _values(5001, seed=2)
    scale, zero_point = torch.tensor(grid[0]), torch.tensor(grid[1], dtype=torch.int32)
    expected = native_ops.learned_gradients(
        gradient, x, scale, zero_point, *grid[2:], *clip, has_offset, 1.0
    )
    d_x, sums = ops.learned_gradients(
        gradient, x, scale, zero_point, (*grid[2:], *clip), has_offset
    )
    assert torch.equal(d_x, expected[0])
    torch.testing.assert_close(sums[0], expected[1], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(sums[1], expected[2], rtol=1e-4, atol=1e-2)


def _spec(bits: int, signed: bool, symmetric: bool, power: bool, per_channel: bool) -> list[int]:
    low = -(1 << (bits - 1)) if signed else 0
    return [low, low + (1 << bits) - 1, int(signed), int(symmetric), int(power), int(per_channel)]


SPECS = [
    _spec(8, True, True, False, True),
    _spec(4, True, True, True, True),
    _spec(8, False, False, False, True),
    _spec(8, False, True, False, True),
    _spec(8, True, True, False, False),
    _spec(5, False, False, True, False),
]


@pytest.mark.parametrize("integers", SPECS, ids=str)
@pytest.mark.parametrize("unfolds", [False, True])
@pytest.mark.parametrize("kind", ["plain", "folded", "given"])
def test_weights_and_their_gradients(integers: list[int], unfolds: bool, kind: str) -> None:
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(6, 5, 17, 13, generator=generator)
    weight[4] = 0.0
    factor = scale = zero_point = None
    if kind != "plain":
        factor = torch.randn(6, generator=generator)
        factor[2] = 1e-20
    if kind == "given":
        shape = (6,) if integers[5] else ()
        scale = torch.rand(shape, generator=generator) * 0.02 + 0.01
        zero_point = torch.zeros(shape, dtype=torch.int32)
    if unfolds and factor is None:
        pytest.skip("without a factor there is nothing to unfold")
    given = (weight, factor, scale, zero_point, integers, unfolds)
    assert torch.equal(ops.rounded_weight(*given), native_ops.rounded_weight(*given))

    gradient = torch.randn(weight.shape, generator=generator)
    wanted = [factor is not None, scale is not None]
    d_weight, d_factor, d_scale = native_ops.weight_gradients(gradient, *given, 1.0, wanted)
    found = ops.weight_gradients(gradient, *given, wanted)
    assert torch.equal(found[0], d_weight)
    torch.testing.assert_close(found[1], d_factor, rtol=1e-4, atol=1e-3)
    if scale is not None:
        sums = found[2] if integers[5] else found[2].sum()
        torch.testing.assert_close(sums, d_scale, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("integers", SPECS[:4], ids=str)
@pytest.mark.parametrize("unfolds", [False, True])
@pytest.mark.parametrize("kind", ["plain", "folded", "given"])
def test_all_weights_at_once(integers: list[int], unfolds: bool, kind: str) -> None:
    generator = torch.Generator().manual_seed(6)
    weights = [
        torch.randn(shape, generator=generator)
        for shape in [(6, 5, 3, 3), (4, 1, 3, 3), (3, 700), (2, 40, 7, 7)]
    ]
    weights[0] = weights[0].contiguous(memory_format=torch.channels_last)
    rows = [len(weight) for weight in weights]
    factor = scale = zero_point = None
    if kind != "plain":
        factor = torch.randn(sum(rows), generator=generator)
        factor[2] = 1e-20
    if kind == "given":
        scale = torch.rand(sum(rows), generator=generator) * 0.02 + 0.01
        zero_point = torch.zeros(sum(rows), dtype=torch.int32)
    if unfolds and factor is None:
        pytest.skip("without a factor there is nothing to unfold")
    table, rest = row_table(weights), (integers, unfolds)
    flat = ops.rounded_weights(weights, table, (factor, scale, zero_point), *rest)
    found = views_of(flat, weights)
    wanted = [factor is not None, scale is not None]
    gradients = [torch.randn(w.shape, generator=generator).to(memory_format=torch.contiguous_format)
                 for w in weights]  # fmt: skip
    gradient = torch.empty_like(flat)
    for view, one in zip(views_of(gradient, weights), gradients, strict=True):
        view.copy_(one)
    d_flat, d_factor, d_scale = ops.weights_gradients(
        gradient, weights, table, (factor, scale, zero_point), *rest, wanted
    )
    none = [None] * len(weights)
    parts = [
        list(t.split(rows)) if t is not None and len(t) else none
        for t in (factor, scale, zero_point, d_factor, d_scale)
    ]
    for n, (weight, one) in enumerate(zip(weights, gradients, strict=True)):
        f, s, z, own_factor, own_scale = (part[n] for part in parts)
        given = (weight, f, s, z, *rest)
        assert torch.equal(found[n], native_ops.rounded_weight(*given))
        one = one.contiguous(memory_format=torch.channels_last) if n == 0 else one
        d_weight, by_factor, by_scale = native_ops.weight_gradients(one, *given, 1.0, wanted)
        assert torch.equal(views_of(d_flat, weights)[n], d_weight)
        if own_factor is not None:
            torch.testing.assert_close(own_factor, by_factor, rtol=1e-4, atol=1e-3)
        if own_scale is not None:
            torch.testing.assert_close(own_scale, by_scale, rtol=1e-4, atol=1e-2)


def test_a_nan_weight_gives_a_nan_result() -> None:
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(5))
    weight[1, 7] = torch.nan
    weight[2, 3] = torch.inf
    given = (weight, None, None, None, SPECS[0], False)
    expected = native_ops.rounded_weight(*given)
    assert torch.equal(ops.rounded_weight(*given).isnan(), expected.isnan())
    assert torch.equal(ops.rounded_weight(*given)[2], expected[2])


def doubled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with a result, or the first of its results, that is twice as large."""

    def wrong(*given: Any) -> Any:
        result = function(*given)
        return 2 * result if isinstance(result, torch.Tensor) else (2 * result[0], *result[1:])

    return wrong


def test_the_check_accepts_the_kernels_and_finds_a_wrong_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = torch.device("cpu")
    assert kernels_work(device)
    with monkeypatch.context() as patch:
        patch.setattr(ops, "rounded_weight", lambda weight, *rest: weight)
        assert not kernels_work(device)
    assert "fake-quantized weights differ" in caplog.text
    with monkeypatch.context() as patch:
        right = ops.rounded_weights
        patch.setattr(ops, "rounded_weights", lambda *given: right(*given) + 1)
        assert not kernels_work(device)
    assert "weights that are fake-quantized together differ" in caplog.text
    for name, words in (
        ("masked_gradient", "gradients of activations differ"),
        ("learned_gradients", "gradients of activations with learned scales differ"),
        ("weights_gradients", "gradients of weights differ"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(ops, name, doubled(getattr(ops, name)))
            assert not kernels_work(device)
        assert words in caplog.text

    def broken(*_: object) -> None:
        raise RuntimeError("no such\nGPU")

    monkeypatch.setattr(ops, "activate", broken)
    assert not kernels_work(device)
    assert "RuntimeError: no such GPU" in caplog.text
