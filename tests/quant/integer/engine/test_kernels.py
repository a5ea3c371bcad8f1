"""Each module computes the same as ONNX Runtime's operator, for every integer."""

from __future__ import annotations

import platform
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dq.quant.integer.engine import eigen, functions
from dq.quant.integer.engine.arithmetic import fused
from dq.quant.integer.engine.elementwise import ExactProduct, ExactSum
from dq.quant.integer.engine.pooling import ExactAverage, ExactGlobalAverage
from dq.quant.integer.engine.quantizer import ExactQuantizer
from dq.quant.integer.engine.resize import Resizing, interpolated
from dq.quant.integer.engine.softmax import ExactSoftmax
from dq.quant.integer.engine.table import ExactTable
from tests.quant.integer.engine.kernel import (
    MICROSOFT,
    Array,
    integers_of,
    kernel,
    parameters,
    quantizers,
    real,
)

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(
        platform.machine() not in ("x86_64", "AMD64"),
        reason="the instructions of ONNX Runtime's kernels are known on x86",
    ),
]
EVERY = np.arange(256, dtype=np.uint8)


def random_bytes(seed: int, *shape: int) -> Array:
    found: Array = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    return found


def named(**own: ExactQuantizer) -> dict[str, Array]:
    """Return ``a_scale``, ``a_zero`` ... for quantizers ``a`` ..."""
    found = {}
    for name, one in own.items():
        found[f"{name}_scale"], found[f"{name}_zero"] = parameters(one)
    return found


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, float]]] = {
    "Sigmoid": (functions.sigmoid, {}),
    "Tanh": (functions.tanh, {}),
    "Erf": (functions.erf, {}),
    "HardSigmoid": (functions.hard_sigmoid, {"alpha": 1 / 6, "beta": 0.5}),
    "HardSwish": (functions.hard_swish, {}),
    "Elu": (eigen.elu, {"alpha": 1.0}),
    "Softplus": (eigen.softplus, {}),
    "Log": (lambda x: eigen.log(x.abs() + 0.5), {}),
}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_functions_have_the_last_digits_of_onnxruntime(kind: str) -> None:
    function, settings = FUNCTIONS[kind]
    generator = torch.Generator().manual_seed(0)
    x = torch.cat(
        [
            torch.randn(200_000, generator=generator) * 4,
            torch.randn(50_000, generator=generator) * 0.01,
            torch.linspace(-30, 30, 200_000),
        ]
    )
    given = x.abs() + 0.5 if kind == "Log" else x
    expected = torch.from_numpy(kernel(kind, {"x": given.numpy()}, {}, **settings))
    assert torch.equal(function(x), expected)


def test_fused_rounds_once() -> None:
    generator = torch.Generator().manual_seed(0)
    num = 2000
    x = torch.randn(num, generator=generator)
    factor = torch.randn(num, generator=generator) * 2.0 ** torch.randint(-40, 1, (num,))
    addend = torch.randn(num, generator=generator) * 2.0 ** torch.randint(-20, 21, (num,))
    found = fused(x, factor, addend)
    for one, *given in zip(found.tolist(), *(t.tolist() for t in (x, factor, addend)), strict=True):
        true = Fraction(given[0]) * Fraction(given[1]) + Fraction(given[2])
        near = np.float32(one)
        others = [np.nextafter(near, np.float32(end)) for end in (-np.inf, np.inf)]
        distance = abs(Fraction(one) - true)
        assert all(distance <= abs(Fraction(float(other)) - true) for other in others)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(("tiny", "wanted"), [(2.0**-100, 1), (-(2.0**-100), 0), (0.0, 0)])
def test_fused_sees_what_float64_cannot_hold(sign: float, tiny: float, wanted: int) -> None:
    """A product between two float32 numbers, and an addend that decides which of them is nearer."""
    root = 1 + 2.0**-12  # Its square is 1 + 2 ** -11 and half of float32's step.
    x, factor, addend = (torch.tensor(value) for value in (sign * root, root, sign * tiny))
    assert fused(x, factor, addend).item() == sign * (1 + 2.0**-11 + wanted * 2.0**-23)


@pytest.mark.parametrize("seed", range(4))
def test_tables_are_those_of_onnxruntime(seed: int) -> None:
    slope = 0.1
    kinds: list[tuple[str, Callable[[Tensor], Tensor], dict[str, float]]] = [
        ("QLinearSigmoid", functions.sigmoid, {}),
        ("QLinearLeakyRelu", lambda x: F.leaky_relu(x, slope), {"alpha": slope}),
    ]
    own = quantizers(seed, 24)
    for before, after in zip(own[::2], own[1::2], strict=True):
        constants = named(a=before, b=after)
        for kind, function, settings in kinds:
            inputs = {"a": EVERY, **dict.fromkeys(constants)}
            expected = kernel(kind, inputs, constants, domain=MICROSOFT, **settings)
            found = ExactTable(function, before, after)(real(EVERY, before))
            assert (integers_of(found, after) == expected).all()


@pytest.mark.parametrize("kind", ["QLinearAdd", "QLinearMul"])
def test_sum_and_product_of_any_two_integers_are_those_of_onnxruntime(kind: str) -> None:
    left, right = (values.reshape(-1) for values in np.meshgrid(EVERY, EVERY))
    module: Any = ExactSum if kind == "QLinearAdd" else ExactProduct
    own = quantizers(7, 45)
    for a, b, c in zip(own[::3], own[1::3], own[2::3], strict=True):
        constants = named(a=a, b=b, c=c)
        order = ["a", "a_scale", "a_zero", "b", "b_scale", "b_zero", "c_scale", "c_zero"]
        given = {"a": left, "b": right}
        inputs = {name: given.get(name) for name in order}
        expected = kernel(kind, inputs, constants, domain=MICROSOFT)
        found = module(a, b, c)(real(left, a), real(right, b))
        assert (integers_of(found, c) == expected).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (16, 16), (7, 40)])
def test_mean_over_the_image_is_that_of_onnxruntime(size: tuple[int, int]) -> None:
    x = random_bytes(1, 2, 64, *size)
    own = quantizers(3, 24)
    for before, after in zip(own[::2], own[1::2], strict=True):
        constants = named(a=before, b=after)
        inputs = {"a": x, **dict.fromkeys(constants)}
        kind = "QLinearGlobalAveragePool"
        expected = kernel(kind, inputs, constants, domain=MICROSOFT, channels_last=0)
        found = ExactGlobalAverage(before, after, keepdim=True)(real(x, before))
        assert (integers_of(found, after) == expected).all()


@pytest.mark.parametrize("channels_last", [0, 1])
@pytest.mark.parametrize(
    ("window", "stride", "padding", "counts"),
    [(2, 2, 0, True), (3, 1, 1, True), (3, 2, 1, False), (5, 3, 2, False), (7, 1, 0, True)],
)
def test_average_of_windows_is_that_of_onnxruntime(
    window: int, stride: int, padding: int, counts: bool, channels_last: int
) -> None:
    x = random_bytes(2, 2, 16, 19, 22)
    own = quantizers(4, 12)
    for before, after in zip(own[::2], own[1::2], strict=True):
        constants = named(a=before, b=after)
        given = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if channels_last else x
        expected = kernel(
            "QLinearAveragePool",
            {"a": given, **dict.fromkeys(constants)},
            constants,
            domain=MICROSOFT,
            kernel_shape=[window] * 2,
            strides=[stride] * 2,
            pads=[padding] * 4,
            count_include_pad=int(counts),
            channels_last=channels_last,
        )
        if channels_last:
            expected = expected.transpose(0, 3, 1, 2)
        average = F.avg_pool2d(real(x, before), window, stride, padding, count_include_pad=counts)
        assert (integers_of(ExactAverage(after)(average), after) == expected).all()


@pytest.mark.parametrize(("dim", "length"), [(1, 8), (2, 100), (1, 300)])
def test_softmax_is_that_of_onnxruntime(dim: int, length: int) -> None:
    shape = [3, 20, 30]
    shape[dim] = length
    x = random_bytes(5, *shape)
    own = quantizers(6, 16)
    for before, after in zip(own[::2], own[1::2], strict=True):
        constants = named(a=before, b=after)
        inputs = {"a": x, **dict.fromkeys(constants)}
        expected = kernel("QLinearSoftmax", inputs, constants, domain=MICROSOFT, axis=dim, opset=13)
        found = ExactSoftmax(dim, before, after)(real(x, before))
        assert (integers_of(found, after) == expected).all()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [None, (31, 43), (16, 20), (5, 1)])
def test_interpolation_is_that_of_onnxruntime(
    size: tuple[int, int] | None, align_corners: bool, channels_last: bool
) -> None:
    x = torch.randn(2, 3, 16, 20, generator=torch.Generator().manual_seed(0))
    mode = "align_corners" if align_corners else "half_pixel"
    for factor in (2.0, 1.5, 0.5) if size is None else (1.0,):
        order = (0, 2, 3, 1) if channels_last else (0, 1, 2, 3)
        whole = [2, 3, *size] if size is not None else [1.0, 1.0, factor, factor]
        value = np.asarray([whole[i] for i in order], np.int64 if size else np.float32)
        expected = kernel(
            "Resize",
            {
                "x": x.permute(order).contiguous().numpy(),
                "roi": None,
                "scales": None,
                "sizes": None,
            },
            {"sizes" if size else "scales": value},
            mode="linear",
            coordinate_transformation_mode=mode,
        )
        if channels_last:
            expected = expected.transpose(0, 3, 1, 2)
        factors = None if size else (factor, factor)
        resizing = Resizing(factors=factors, align_corners=align_corners)
        assert torch.equal(interpolated(x, resizing, size), torch.from_numpy(expected.copy()))
