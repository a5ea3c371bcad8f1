"""Property tests of affine quantization: a float64 reference, torch.ao, and edge cases."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dq.quant.numerics.affine import (
    dequantize,
    fake_quantize,
    fake_quantize_composed,
    next_power_of_two,
    quantize,
    range_over,
    scale_and_zero_point,
)
from dq.quant.numerics.spec import QuantSpec
from tests.quant.specs import specs

torch.set_num_threads(1)
EXAMPLES = settings(max_examples=60, deadline=None)
FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
ANY = st.floats(width=32, allow_nan=True, allow_infinity=True)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[float, float]:
    edge = st.sampled_from([0.0, 1.0, -1.0, 1e-45, 1e-38, 3e38, torch.inf, -torch.inf])
    low, high = sorted((draw(st.one_of(FINITE, edge)), draw(st.one_of(FINITE, edge))))
    return low, high


def reference(x: Tensor, scale: float, zero_point: int, spec: QuantSpec) -> np.ndarray:
    """Quantize in float64, half to even, with the float32 reciprocal of the kernels."""
    inverse = float(np.float32(1.0) / np.float32(scale))
    product = np.float32(x.double().numpy() * inverse).astype(np.float64)
    integers = np.clip(np.rint(product) + zero_point, spec.quant_min, spec.quant_max)
    return (integers - zero_point) * scale


@EXAMPLES
@given(specs(), ranges())
def test_scale_is_positive_finite_and_zero_is_representable(
    spec: QuantSpec, bounds: tuple[float, float]
) -> None:
    low, high = (torch.tensor(b) for b in bounds)
    scale, zero_point = scale_and_zero_point(low, high, spec)
    assert scale.dtype == torch.float32
    assert zero_point.dtype == torch.int32
    assert 0 < float(scale) < float("inf")
    assert spec.quant_min <= int(zero_point) <= spec.quant_max
    zero = torch.zeros(3)
    assert torch.equal(fake_quantize(zero, scale, zero_point, spec), zero)


@EXAMPLES
@given(specs(), ranges())
def test_range_is_covered_up_to_half_a_level(spec: QuantSpec, bounds: tuple[float, float]) -> None:
    low, high = (torch.tensor(b) for b in bounds)
    scale, zero_point = scale_and_zero_point(low, high, spec)
    ends = torch.stack([low, high]).clamp(-8e37, 8e37)
    if spec.symmetric and not spec.signed:
        ends = ends.clamp(min=0)
    error = (fake_quantize(ends, scale, zero_point, spec).double() - ends.double()).abs()
    # A whole level at the ends, because the zero point itself was rounded.
    assert float(error.max()) <= float(scale) * 1.001 + float(ends.abs().max()) * 1e-5


@EXAMPLES
@given(specs(), ranges(), st.lists(ANY, min_size=1, max_size=20))
def test_fake_quantize_is_quantize_then_dequantize(
    spec: QuantSpec, bounds: tuple[float, float], values: list[float]
) -> None:
    scale, zero_point = scale_and_zero_point(torch.tensor(bounds[0]), torch.tensor(bounds[1]), spec)
    x = torch.tensor(values, dtype=torch.float32)
    whole = fake_quantize(x, scale, zero_point, spec)
    integers = quantize(x, scale, zero_point, spec)
    assert integers.min() >= spec.quant_min
    assert integers.max() <= spec.quant_max
    assert torch.equal(whole, dequantize(integers, scale, zero_point, spec))


@EXAMPLES
@given(st.integers(0, 3), st.data())
def test_any_channel_axis_equals_each_channel_alone(axis: int, data: st.DataObject) -> None:
    spec = data.draw(specs(channel_axis=axis))
    seed = data.draw(st.integers(0, 1000))
    x = torch.randn(3, 2, 4, 3, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (seed % 7)
    x.flatten()[seed % 72] = data.draw(st.sampled_from([0.0, 1e30, -1e30, torch.inf, -torch.inf]))
    low, high = range_over(x.nan_to_num(posinf=50.0, neginf=-50.0).clamp(-50, 50), axis)
    scale, zero_point = scale_and_zero_point(low, high, spec)
    whole = fake_quantize(x, scale, zero_point, spec)
    assert torch.equal(
        whole, dequantize(quantize(x, scale, zero_point, spec), scale, zero_point, spec)
    )
    alone = QuantSpec(
        bits=spec.bits, signed=spec.signed, symmetric=spec.symmetric, narrow=spec.narrow
    )
    for c in range(x.shape[axis]):
        one = fake_quantize(x.select(axis, c), scale[c], zero_point[c], alone)
        assert torch.equal(whole.select(axis, c), one)
    negative = axis - 4
    same = fake_quantize(
        x, scale, zero_point, QuantSpec(**{**_asdict(spec), "channel_axis": negative})
    )
    assert torch.equal(whole, same)


def _asdict(spec: QuantSpec) -> dict[str, object]:
    return {name: getattr(spec, name) for name in QuantSpec.__slots__}


@EXAMPLES
@given(specs(), st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30))
def test_float64_reference(spec: QuantSpec, values: list[float]) -> None:
    x = torch.tensor(values)
    scale, zero_point = scale_and_zero_point(*range_over(x, None), spec)
    expected = reference(x, float(scale), int(zero_point), spec)
    got = fake_quantize(x, scale, zero_point, spec)
    np.testing.assert_allclose(got.double().cpu().numpy(), expected, rtol=1e-6, atol=0)


@EXAMPLES
@given(
    st.integers(2, 16),
    st.booleans(),
    st.booleans(),
    st.lists(st.floats(-1000, 1000, width=32), min_size=2, max_size=20),
)
def test_torch_ao_agrees(bits: int, signed: bool, symmetric: bool, values: list[float]) -> None:
    # torch.ao's symmetric scale spans quant_max - quant_min, which is ours in a narrow range.
    spec = QuantSpec(bits=bits, signed=signed or symmetric, symmetric=symmetric, narrow=symmetric)
    x = torch.tensor(values)
    low, high = range_over(x, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization.observer import MinMaxObserver

        oracle = MinMaxObserver(
            dtype=torch.qint32,
            qscheme=torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine,
            quant_min=spec.quant_min,
            quant_max=spec.quant_max,
            eps=2.0**-120,
        )
        oracle(x)
        theirs = oracle.calculate_qparams()
    scale, zero_point = scale_and_zero_point(low, high, spec)
    if float(low) == float(high) == 0:
        return  # All zeros: any scale is right; ours is 1.
    torch.testing.assert_close(scale, theirs[0].reshape(()), rtol=1e-6, atol=0)
    ours = fake_quantize(x, scale, zero_point, spec)
    other = torch.fake_quantize_per_tensor_affine(
        x, float(theirs[0]), int(theirs[1]), spec.quant_min, spec.quant_max
    )
    # Scales that differ by one bit may round a tie or a zero point the other way.
    assert float((ours - other).abs().max()) <= float(scale) * 1.01


@EXAMPLES
@given(st.floats(2.0**-120, 2.0**126, width=32))
def test_power_of_two_is_the_next_one(value: float) -> None:
    got = float(next_power_of_two(torch.tensor([value]))[0])
    assert got >= value > got / 2
    assert np.frexp(got)[0] == 0.5


@pytest.mark.parametrize("exponent", range(-119, 127))
def test_power_of_two_keeps_powers(exponent: int) -> None:
    x = torch.tensor(2.0**exponent)
    assert torch.equal(next_power_of_two(x), x)


@EXAMPLES
@given(st.integers(-3, 2), st.integers(0, 5), st.integers(0, 3))
def test_range_over_any_axis(axis: int, rows: int, columns: int) -> None:
    x = torch.randn(rows, columns, 2)
    low, high = range_over(x, axis)
    assert low.shape == (x.shape[axis],)
    other = [d for d in range(3) if d != axis % 3]
    if x.numel():
        assert torch.equal(low, x.amin(other))
        assert torch.equal(high, x.amax(other))
    elif x.shape[axis]:
        assert bool(torch.isposinf(low).all())
        assert bool(torch.isneginf(high).all())


def test_range_over_a_vectors_own_axis_is_each_value() -> None:
    x = torch.tensor([3.0, -1.0, 0.0])
    for axis in (0, -1):
        low, high = range_over(x, axis)
        assert torch.equal(low, x)
        assert torch.equal(high, x)


def test_the_range_over_nothing_is_neutral() -> None:
    for axis, shape in ((None, (0, 3)), (0, (2, 0)), (1, (0, 2))):
        low, high = range_over(torch.empty(shape), axis)
        assert low.shape == high.shape == (() if axis is None else (2,))
        assert bool(torch.isposinf(low).all())
        assert bool(torch.isneginf(high).all())


def test_empty_tensor_passes() -> None:
    for axis, shape in ((None, (0, 3)), (0, (2, 0)), (0, (0, 2))):
        spec = QuantSpec(signed=True, symmetric=True, channel_axis=axis)
        x = torch.empty(shape)
        scale, zero_point = scale_and_zero_point(*range_over(x, axis), spec)
        assert fake_quantize(x, scale, zero_point, spec).shape == shape
        assert quantize(x, scale, zero_point, spec).shape == shape


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("ends", [(math.inf, -math.inf), (0.0, 0.0), (2.0, 1.0)])
def test_an_empty_range_has_a_scale_of_one_and_rounds_to_integers(
    signed: bool, symmetric: bool, ends: tuple[float, float]
) -> None:
    spec = QuantSpec(signed=signed, symmetric=symmetric)
    scale, zero_point = scale_and_zero_point(*map(torch.tensor, ends), spec)
    assert (float(scale), int(zero_point)) == (1.0, 0)


def test_nan_range_gives_nan_scale_and_a_defined_zero_point() -> None:
    for power_of_two in (False, True):
        spec = QuantSpec(power_of_two=power_of_two)
        nan = torch.tensor(float("nan"))
        scale, zero_point = scale_and_zero_point(nan, nan, spec)
        assert bool(scale.isnan())
        assert int(zero_point) == 0


@pytest.mark.parametrize("value", [0.3, -7.0, 1e-42, 0.0])
@pytest.mark.parametrize("symmetric", [True, False])
def test_constant_tensor_is_representable(value: float, symmetric: bool) -> None:
    spec = QuantSpec(signed=symmetric, symmetric=symmetric)
    x = torch.full((5,), value)
    scale, zero_point = scale_and_zero_point(*range_over(x, None), spec)
    torch.testing.assert_close(
        fake_quantize(x, scale, zero_point, spec), x, rtol=1e-6, atol=2.0**-120
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("axis", [None, 1])
def test_other_dtypes_quantize_like_their_integers(dtype: torch.dtype, axis: int | None) -> None:
    spec = QuantSpec(signed=True, symmetric=True, channel_axis=axis)
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 0] = torch.inf
    low, high = range_over(x[1:], axis)
    scale, zero_point = scale_and_zero_point(low, high, spec)
    whole = fake_quantize(x, scale, zero_point, spec)
    parts = dequantize(quantize(x, scale, zero_point, spec), scale, zero_point, spec)
    assert whole.dtype == dtype
    # In float64 the kernel for channels multiplies in float64, dequantize in float32.
    torch.testing.assert_close(
        whole, parts.to(dtype), rtol=1e-6 if dtype == torch.float64 else 0, atol=0
    )


def test_gradient_is_one_inside_and_zero_outside() -> None:
    for axis in (None, 0):
        spec = QuantSpec(bits=4, signed=True, symmetric=True, channel_axis=axis)
        x = torch.tensor([[-100.0, -0.5, 0.0, 0.6, 100.0, torch.inf]], requires_grad=True)
        scale = torch.tensor([0.1] if axis == 0 else 0.1)
        fake_quantize(x, scale, torch.zeros_like(scale, dtype=torch.int32), spec).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [[0, 1, 1, 1, 0, 0]]


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("power_of_two", [True, False])
def test_one_compiled_graph_gives_the_same(axis: int | None, power_of_two: bool) -> None:
    spec = QuantSpec(signed=True, symmetric=True, channel_axis=axis, power_of_two=power_of_two)

    def whole(x: Tensor) -> Tensor:
        return fake_quantize(x, *scale_and_zero_point(*range_over(x, axis), spec), spec)

    x = torch.randn(4, 5)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(whole, fullgraph=True, backend="aot_eager")(x), whole(x))


@pytest.mark.parametrize("bits", [1, 17])
def test_bits_outside_2_to_16_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="2 to 16"):
        QuantSpec(bits=bits)


def test_spec_without_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="no integer for zero"):
        QuantSpec(symmetric=True, narrow=True)


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("symmetric", [True, False])
def test_fake_quantize_never_reads_the_device(axis: int | None, symmetric: bool) -> None:
    """A fake tensor has no values, so reading one raises an error."""
    spec = QuantSpec(signed=symmetric, symmetric=symmetric, channel_axis=axis)
    with FakeTensorMode(allow_non_fake_inputs=False):
        x = torch.empty(4, 5, requires_grad=True)
        y = fake_quantize(x, *scale_and_zero_point(*range_over(x.detach(), axis), spec), spec)
        y.sum().backward()


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_affine_channels_are_quantized_like_torchs_kernel(bits: int, axis: int) -> None:
    spec = QuantSpec(bits=bits, channel_axis=axis)
    x = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(bits)) * 3
    scale, zero_point = scale_and_zero_point(*range_over(x * 0.8, axis), spec)
    results = []
    for run in (
        lambda t: fake_quantize(t, scale, zero_point, spec),
        lambda t: torch.fake_quantize_per_channel_affine(
            t, scale, zero_point, axis % 3, spec.quant_min, spec.quant_max
        ),
    ):
        given = x.clone().requires_grad_()
        y = run(given)
        y.square().sum().backward()
        assert given.grad is not None
        results.append((y.detach(), given.grad))
    for ours, torchs in zip(*results, strict=True):
        assert torch.equal(ours, torchs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_scale_is_computed_in_the_dtype_of_the_range_and_at_least_in_float32(
    dtype: torch.dtype,
) -> None:
    low, high = torch.tensor([-1e-3, -3.0]).to(dtype), torch.tensor([60000.0, 3.1]).to(dtype)
    scale, zero_point = scale_and_zero_point(low, high, QuantSpec())
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert torch.equal(scale, ((high.to(wide) - low.to(wide)) / 255.0).float())
    assert zero_point.tolist() == [0, 125]
    # In float64 the sum of the ends is not rounded before it is divided.
    ends = torch.tensor(-1.0).double(), torch.tensor(2.0**-25).double()
    exact = scale_and_zero_point(*ends, QuantSpec(bits=2))[0]
    assert float(exact) == float(torch.tensor((2.0**-25 + 1.0) / 3.0).float())


def test_infinite_ends_are_a_quarter_of_the_largest_float() -> None:
    largest = float(torch.finfo(torch.float32).max)
    infinite = torch.tensor(torch.inf)
    scale, zero_point = scale_and_zero_point(-infinite, infinite, QuantSpec(bits=2))
    assert float(scale) == pytest.approx(largest / 2 / 3, rel=1e-6)
    assert int(zero_point) == 2
    scale, _ = scale_and_zero_point(torch.tensor(0.0), infinite, QuantSpec(bits=2))
    assert float(scale) == pytest.approx(largest / 4 / 3, rel=1e-6)


def test_the_smallest_scale_and_the_neutral_zero_point_stay() -> None:
    tiny, empty = torch.tensor(1e-45), torch.tensor(torch.inf)
    assert float(scale_and_zero_point(-tiny, tiny, QuantSpec())[0]) == 2.0**-120
    for spec, neutral in (
        (QuantSpec(), 0),
        (QuantSpec(narrow=True), 1),
        (QuantSpec(signed=True), 0),
        (QuantSpec(signed=True, narrow=True), 0),
    ):
        assert int(scale_and_zero_point(empty, -empty, spec)[1]) == neutral


def test_a_range_of_one_value_is_not_empty() -> None:
    for value, symmetric in ((3.0, True), (3.0, False), (-3.0, False)):
        end = torch.tensor(value)
        spec = QuantSpec(signed=symmetric, symmetric=symmetric)
        scale, _ = scale_and_zero_point(end, end, spec)
        assert float(scale) == pytest.approx(3.0 / (127 if symmetric else 255))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_far_outside_are_clipped_and_do_not_wrap(dtype: torch.dtype) -> None:
    # An integer of 32 bits holds about 2e9.
    for scale in (1e-4, 1.0, 100.0):
        for integer in (2e5, 3e6, 1.5e9, 2.5e9, 4e9, 1e12):
            x = torch.tensor([[integer * scale, -integer * scale]], dtype=dtype)
            for bits in (2, 8, 16):
                spec = QuantSpec(bits=bits, signed=True, symmetric=True, channel_axis=0)
                y = fake_quantize(x, torch.tensor([scale]), torch.tensor([0]), spec)
                wanted = [spec.quant_max * scale, spec.quant_min * scale]
                assert y[0].tolist() == pytest.approx(wanted, rel=1e-6)


def test_torchs_kernels_are_used_except_for_affine_channels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dq.quant.numerics.affine._Composed.apply", lambda *_: "plain operators")
    x, one, zero = torch.ones(2, 3), torch.ones(2), torch.zeros(2, dtype=torch.int32)
    for signed in (False, True):
        for symmetric in (False, True):
            for axis, scale, shift in ((None, one[0], zero[0]), (0, one, zero)):
                spec = QuantSpec(signed=signed, symmetric=symmetric, channel_axis=axis)
                composed = fake_quantize(x, scale, shift, spec)
                assert isinstance(composed, str) == (axis == 0 and not symmetric)


def test_a_vector_has_one_row_for_each_channel_and_nothing_in_a_row_is_neutral() -> None:
    low, high = range_over(torch.tensor([[4.0, -2.0], [1.0, 9.0]]), 1)
    assert (low.tolist(), high.tolist()) == ([1.0, -2.0], [4.0, 9.0])
    low, high = range_over(torch.empty(3, 0), 0)
    assert low.tolist() == [torch.inf] * 3
    assert high.tolist() == [-torch.inf] * 3


def test_a_spec_is_eight_bits_unsigned_affine_and_per_tensor_by_default() -> None:
    assert QuantSpec() == QuantSpec(
        bits=8, signed=False, symmetric=False, channel_axis=None, power_of_two=False, narrow=False
    )
    assert (QuantSpec().quant_min, QuantSpec().quant_max, QuantSpec().num_levels) == (0, 255, 256)
    for bits in (2, 16):
        assert QuantSpec(bits=bits, signed=True, narrow=True).num_levels == 2**bits - 1


@pytest.mark.parametrize("axis", [None, 0])
def test_float64_is_rounded_in_float64(axis: int | None) -> None:
    # In float32 these are 1.5 and 2.5, which round to 2.
    x = torch.tensor([[1.5 - 1e-10, 2.5 + 1e-10]] * 2, dtype=torch.float64)
    for symmetric in (False, True):
        spec = QuantSpec(signed=True, symmetric=symmetric, channel_axis=axis)
        scale, shift = torch.ones(2), torch.zeros(2, dtype=torch.int32)
        if axis is None:
            scale, shift = scale[0], shift[0]
        assert fake_quantize_composed(x, scale, shift, spec)[0].tolist() == [[1, 3], [1, 3]]
        assert quantize(x, scale, shift, spec).tolist() == [[1, 3], [1, 3]]


def test_plain_operators_mark_what_is_inside_both_ends_included() -> None:
    spec = QuantSpec(bits=2, signed=True, symmetric=True)  # -2 to 1
    x = torch.tensor([-2.6, -2.4, -2.0, 0.0, 1.0, 1.4, 1.6, torch.nan])
    y, inside = fake_quantize_composed(x, torch.tensor(1.0), torch.tensor(0), spec)
    assert y.tolist() == [-2, -2, -2, 0, 1, 1, 1, -2]
    assert inside.tolist() == [False, True, True, True, True, True, False, False]
