"""The kernels of synchronized norms against float64 and against torch's operators."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dq.dist.exchange import collectives
from dq.dist.norm import native_passes as native_batch_norm
from dq.dist.norm import torch_passes as torch_batch_norm
from dq.dist.norm.operator import normalize_over_ranks
from dq.dist.norm.sync_batch_norm import SyncBatchNorm, convert_sync_batch_norm
from tests.processes.ranks import run_ranks

EPS = 1e-5
LAYOUTS = {
    "as it is": torch.contiguous_format,
    "channels last": torch.channels_last,
    "channels last, volume": torch.channels_last_3d,
}
# Odd sizes, rows longer than a block, many and few channels, no samples, one sample.
SHAPES = [
    *[(2, 3, 5, 7), (3, 17, 9, 11), (4, 8, 33, 40), (1, 5, 70, 101), (5, 300, 3, 3), (2, 4, 1, 1)],
    *[(2, 1, 6, 6), (700, 40, 2, 2), (7, 5), (3000, 33), (1, 4), (3, 6, 50), (2, 4, 3, 2, 5)],
    *[(2, 9, 5, 6, 7), (0, 4, 5, 5), (2, 4, 0, 3), (1, 2, 9000)],
]


def cases() -> Iterator[Any]:
    for shape in SHAPES:
        for name, layout in LAYOUTS.items():
            if name == "as it is" or len(shape) == {"channels last": 4}.get(name, 5):
                yield pytest.param(shape, layout, id=f"{shape} {name}")


@pytest.fixture(autouse=True)
def _there() -> None:
    assert native_batch_norm.library() is not None, "the machine that runs the tests has a compiler"


def samples(shape: tuple[int, ...], layout: torch.memory_format, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).contiguous(memory_format=layout)


def results(passes: Any, x: Tensor, gradient: Tensor, affine: bool = True) -> dict[str, Tensor]:
    """Run the four passes for two ranks with the same samples."""
    weight = torch.linspace(-2, 3, x.shape[1], dtype=x.dtype) if affine else None
    bias = torch.linspace(1, -1, x.shape[1], dtype=x.dtype) if affine else None
    own = passes.own_moments(x)
    moments = passes.normalize(x, torch.stack([own, own]), weight, bias, EPS)
    sums = passes.own_sums(gradient, x, moments[1])
    _, mean, variance, count = moments
    inverse = (variance + EPS).rsqrt()
    slope = passes.input_gradient(gradient, x, weight, mean, inverse, count, 2 * sums)
    names = ("own", "output", "mean", "variance", "count", "sums", "gradient")
    return dict(zip(names, (own, *moments, sums, slope), strict=True))


def expect_close(got: dict[str, Tensor], wanted: dict[str, Tensor], bound: float) -> None:
    for name, tensor in got.items():
        reference = wanted[name].double()
        scale = reference.abs().max().clamp(min=1.0) if reference.numel() else 1.0
        assert tensor.shape == reference.shape, name
        if tensor.numel():
            error = (tensor.double() - reference).abs().max() / scale
            assert error <= bound, f"{name} is off by {error:.2e}"


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("shape", "layout"), cases())
def test_each_pass_equals_float64_and_operators(
    shape: tuple[int, ...], layout: torch.memory_format, affine: bool
) -> None:
    x, gradient = 3 * samples(shape, layout) + 1, samples(shape, layout, seed=1)
    assert native_batch_norm.takes(x, None, None)
    got = results(native_batch_norm, x, gradient, affine)
    exact = results(torch_batch_norm, x.double(), gradient.double(), affine)
    composed = results(torch_batch_norm, x, gradient, affine)
    # Sums of a few values around zero and their quotients: relative to the largest.
    expect_close(got, exact, 2e-6)
    if x.numel() > x.shape[1]:  # With one sample the operators give the rounding error of the mean.
        expect_close(got, composed, 4e-6)
    for name in ("output", "gradient"):
        assert got[name].stride() == torch.empty_like(x).stride()
        assert got[name].dtype == torch.float32


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("offset", [1e4, -3e5])
def test_far_from_zero_nothing_cancels(layout: torch.memory_format, offset: float) -> None:
    x = samples((4, 6, 40, 45), layout) + offset
    gradient = samples(x.shape, layout, seed=1)
    got = results(native_batch_norm, x, gradient)
    wanted = results(torch_batch_norm, x.double(), gradient.double())
    # The reference is the spread of the float values, not of the values before rounding to float.
    for name in ("mean", "variance"):
        assert ((got[name] - wanted[name]).abs() / wanted["variance"].sqrt()).max() < 1e-6, name
    for name in ("output", "sums", "gradient"):
        expect_close({name: got[name]}, wanted, 2e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_results_do_not_depend_on_the_number_of_threads(layout: torch.memory_format) -> None:
    x, gradient = samples((3, 37, 41, 23), layout), samples((3, 37, 41, 23), layout, seed=1)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(results(native_batch_norm, x, gradient))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for name, tensor in other.items():
            assert torch.equal(tensor, found[0][name]), name


def test_values_that_are_not_finite_are_not_hidden() -> None:
    for bad in (float("nan"), float("inf")):
        x = samples((2, 3, 5, 5), torch.contiguous_format)
        x[1, 1, 2, 2] = bad
        got = results(native_batch_norm, x, torch.ones_like(x))
        assert got["output"][:, 1].isnan().all()
        assert got["output"][:, [0, 2]].isfinite().all()


def test_other_tensors_are_left_to_operators() -> None:
    x, three = torch.zeros(2, 3, 4, 4), torch.ones(3)
    assert native_batch_norm.takes(x, three, three)
    assert not native_batch_norm.takes(x.double(), None, None)
    assert not native_batch_norm.takes(x.bfloat16(), three, three)
    assert not native_batch_norm.takes(x, three.double(), None)
    assert not native_batch_norm.takes(x.transpose(2, 3)[:, :, 1:], three, three)
    assert not native_batch_norm.takes(torch.zeros(2, 3, 4, 4, device="meta"), None, None)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("affine", [True, False])
def test_a_single_process_has_the_gradients_of_batch_norm(
    layout: torch.memory_format, kernels: bool, affine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernels:
        monkeypatch.setattr(native_batch_norm, "takes", lambda *tensors: False)
    x, gradient = samples((4, 6, 7, 9), layout), samples((4, 6, 7, 9), layout, seed=1)
    norm = nn.BatchNorm2d(6, affine=affine).double()
    if affine:
        nn.init.normal_(norm.weight)
    own = copy.deepcopy(norm).float()
    wanted_in, got_in = x.double().requires_grad_(), x.clone().requires_grad_()
    wanted = norm(wanted_in)
    got, *_ = normalize_over_ranks(got_in, own.weight, own.bias, own.eps, "")
    wanted.backward(gradient.double())
    # A gradient in another layout than the input's, and one that is expanded.
    got.backward(gradient.contiguous(), retain_graph=True)
    pairs = [(got, wanted), (got_in.grad, wanted_in.grad)]
    pairs += [(p.grad, q.grad) for p, q in zip(own.parameters(), norm.parameters(), strict=True)]
    for one, two in pairs:
        torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=1e-5)
    (flat,) = torch.autograd.grad(got.sum(), got_in)
    assert float(flat.abs().max()) < 1e-5


def train_both_ways() -> list[str]:
    """Train two steps on two ranks, with and without kernels, and name the differences."""
    generator = torch.Generator().manual_seed(collectives.rank())
    shape = (3 - 2 * collectives.rank(), 6, 5, 8)
    plain = convert_sync_batch_norm(nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6)))
    other, takes, wrong = copy.deepcopy(plain), native_batch_norm.takes, []
    for _ in range(2):
        x = torch.randn(shape, generator=generator)
        x, y = x.clone().requires_grad_(), x.clone().requires_grad_()
        plain(x).square().sum().backward()
        native_batch_norm.takes = lambda *tensors: False
        try:
            other(y).square().sum().backward()
        finally:
            native_batch_norm.takes = takes
        wrong += [] if torch.allclose(x.grad, y.grad, rtol=1e-4, atol=1e-5) else ["input"]
    pairs = {n: (p.grad, other.get_parameter(n).grad) for n, p in plain.named_parameters()}
    pairs |= {n: (b, other.get_buffer(n)) for n, b in plain.named_buffers()}
    wrong += [n for n, (p, q) in pairs.items() if not torch.allclose(p, q, rtol=1e-5, atol=1e-4)]
    return wrong


@pytest.mark.slow
def test_ranks_train_alike_with_kernels_and_without() -> None:
    assert run_ranks(train_both_ways, 2) == [[], []]


def test_tracking_on_the_host_is_that_of_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    mean, variance = torch.randn(5).double(), torch.rand(5).double()
    for momentum in (0.1, 0.7, None):
        one = SyncBatchNorm(5, momentum=momentum)
        two = copy.deepcopy(one)
        for count in (7.0, 0.0, 1.0, 64.0):
            one._track(mean, variance, torch.tensor([count], dtype=torch.float64))
            with monkeypatch.context() as patch:
                patch.setattr(torch.compiler, "is_compiling", lambda: True)
                two._track(mean, variance, torch.tensor([count], dtype=torch.float64))
        for name, buffer in one.named_buffers():
            torch.testing.assert_close(buffer, two.get_buffer(name), rtol=1e-6, atol=1e-7)


def takes_with(switch: str) -> bool:
    """Return whether kernels are used in a process with another $DQ_NATIVE."""
    os.environ["DQ_NATIVE"] = switch
    return native_batch_norm.takes(torch.zeros(2, 3, 4, 4), None, None)


def test_the_switch_turns_kernels_off() -> None:
    assert run_ranks(takes_with, 1, "0") == [False]
    assert run_ranks(takes_with, 1, "1") == [True]
